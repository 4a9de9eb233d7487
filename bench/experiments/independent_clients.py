"""Whether other benchmark clients measure what `bench serve` measures.

    python -m loraplex.bench.experiments.independent_clients --aiperf PROGRAM --guidellm PROGRAM [--rounds 5]

PROGRAM is `aiperf` or `guidellm`, each in an environment of its own. Our server runs with the demo bundle, by default
with a scripted engine that gives every stream a token each --pace seconds: then a client that takes processor time
does not slow down what it measures. `--real` takes the real engine, with one thread. Every round runs each client with
the same prompts, one after the other, in an order that turns; printed are medians of requests, of those medians over
the rounds, and their ratios to ours. aiperf asks for all adapters in turn. guidellm asks for one model a run, so it is
beside a run of ours with one.

Requests come at a rate. Where each waits for the one before (`--rate 0`), a slightly slower client meets another
phase of the scripted engine's steps, and TTFT is not comparable.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from msgspec import Struct

from loraplex.bench.load.options import Data
from loraplex.bench.load.random_prompts import random_prompts
from loraplex.bench.load.vocabulary import Vocabulary
from loraplex.bench.machine import processor
from loraplex.bench.results.result_file import read

ADAPTERS = ("travel", "tone", "json")
WARM_UPS = 24
"""Requests that bench serve and aiperf do not count; guidellm has none, and its medians need none."""
MILLISECONDS = 1000.0

app = App(help=__doc__)


class Figures(Struct, frozen=True):
    """Medians of one run."""

    ttft_ms: float
    tpot_ms: float
    """From the first token to the last, by the tokens after the first."""
    e2el_ms: float
    tokens_per_second: float


class Load(Struct, frozen=True):
    """What every client sends."""

    url: str
    folder: Path
    """With the prompts in each client's form."""
    tokenizer: Path
    rate: float
    """Requests a second, as a Poisson process; 0 for a closed loop of `streams`."""
    streams: int
    requests: int
    tokens: int


def ours(adapters: tuple[str, ...], load: Load) -> Figures:
    path = load.folder / "ours.json"
    command = [sys.executable, "-m", "loraplex.server", "bench", "serve", "--base-url", load.url]
    command += ["--dataset-name", "custom", "--dataset-path", str(load.folder / "prompts.jsonl"), "--disable-shuffle"]
    command += ["--custom-output-len", str(load.tokens), "--num-prompts", str(load.requests), "--ignore-eos"]
    command += ["--request-rate", str(load.rate)] if load.rate else ["--max-concurrency", str(load.streams)]
    command += ["--temperature", "0", "--adapters", *adapters]
    command += [
        "--num-warmups",
        str(WARM_UPS),
        "--adapter-mix",
        "round-robin",
        "--save-result",
        "--result-dir",
        str(load.folder),
    ]
    _call([*command, "--result-filename", path.name])
    (run,) = read(path)
    assert run.totals.failed == 0, run.totals.errors_by_kind
    found = run.totals.latencies
    return Figures(found["ttft"].median, found["tpot"].median, found["e2el"].median, run.totals.output_throughput)


def aiperf(program: Path, load: Load) -> Figures:
    folder = load.folder / "aiperf"
    command = [str(program), "profile", "-m", ",".join(ADAPTERS), "--model-selection-strategy", "round_robin"]
    command += ["-u", load.url, "--endpoint-type", "completions", "--streaming", "--use-server-token-count"]
    command += ["--tokenizer", str(load.tokenizer), "--input-file", str(load.folder / "aiperf.jsonl")]
    command += ["--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential"]
    if load.rate:
        command += ["--request-rate", str(load.rate), "--arrival-pattern", "poisson"]
    else:
        command += ["--concurrency", str(load.streams)]
    command += ["--request-count", str(load.requests), "--warmup-request-count", str(WARM_UPS)]
    for field in ("ignore_eos:true", "temperature:0", f"max_tokens:{load.tokens}"):
        command += ["--extra-inputs", field]
    _call([*command, "--artifact-dir", str(folder), "--ui", "none"])
    found = _json(folder / "profile_export_aiperf.json")
    assert found["request_count"]["avg"] == load.requests, found.get("error_summary")
    return Figures(
        found["time_to_first_token"]["p50"],
        found["inter_token_latency"]["p50"],
        found["request_latency"]["p50"],
        found["output_token_throughput"]["avg"],
    )


def guidellm(program: Path, load: Load) -> Figures:
    path = load.folder / "guidellm.json"
    backend = f"kind=openai_http,target={load.url},model={ADAPTERS[0]},request_format=/v1/completions"
    profile = f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}"
    command = [str(program), "run", "--backend", backend, "--profile", profile]
    command += ["--constraint", f"kind=max_requests,count={load.requests}"]
    command += ["--data", f"kind=json_file,path={load.folder / 'guidellm.jsonl'}"]
    command += ["--tokenizer", f"kind=hf_auto,model={load.tokenizer}", "--output", f"kind=json,path={path}"]
    _call([*command, "--disable-console-interactive"])
    (benchmark,) = _json(path)["benchmarks"]
    metrics = benchmark["metrics"]

    def value(name: str, statistic: str = "median") -> float:
        found = metrics[name]["successful"]
        assert found["count"], f"{name} has no sample"
        return float(found[statistic])

    return Figures(
        value("time_to_first_token_ms"),
        value("inter_token_latency_ms"),
        value("request_latency") * MILLISECONDS,
        value("output_token_count", "total_sum") / benchmark["duration"],
    )


def write_prompts(folder: Path, tokenizer: Path, count: int, length: int, tokens: int, seed: int) -> None:
    """The same prompts in the form of each client."""
    data = Data(num_prompts=count, random_input_len=length, seed=seed)
    texts = [each.content for each in random_prompts(data, Vocabulary(str(tokenizer)))]
    rows: dict[str, Callable[[Any], dict[str, Any]]] = {
        "prompts.jsonl": lambda text: {"prompt": text},
        "aiperf.jsonl": lambda text: {"text": text},
        "guidellm.jsonl": lambda text: {"prompt": text, "output_tokens_count": tokens},
    }
    for name, row in rows.items():
        (folder / name).write_bytes(b"".join(msgspec.json.encode(row(text)) + b"\n" for text in texts))


@contextmanager
def serving(bundle: Path, *, real: bool, pace: float) -> Iterator[str]:
    """A server of ours; yields its URL."""
    command = [
        sys.executable,
        "-m",
        "loraplex.bench.scripted.server",
        str(bundle),
        f"--engine-options=--seconds {pace}",
    ]
    if real:
        command = [sys.executable, "-m", "loraplex.server", "serve", str(bundle), "--threads", "1"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(found[1] for line in process.stderr if (found := re.search(r"ready on (http://\S+);", line)))
        # Nobody reads the log from here on; a full pipe would stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield url
    finally:
        process.terminate()
        process.wait()


def _call(command: list[str]) -> None:
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def _json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def table(name: str, mine: list[Figures], others: list[Figures], *, closed: bool) -> str:
    """Rows of a Markdown table; the last column is the median of the rounds' ratios."""
    titles = {"ttft_ms": "TTFT, ms", "tpot_ms": "TPOT, ms", "e2el_ms": "E2EL, ms"}
    if closed:  # at a rate, tokens/s is that of the arrivals
        titles["tokens_per_second"] = "tokens/s"
    lines = [f"| | `bench serve` | {name} | ratio |", "|---|---|---|---|"]
    for field, title in titles.items():
        pairs = [(getattr(our, field), getattr(other, field)) for our, other in zip(mine, others, strict=True)]
        ratio = median(other / our for our, other in pairs)
        values = (median(our for our, _ in pairs), median(other for _, other in pairs))
        lines.append(f"| {title} | {values[0]:.2f} | {values[1]:.2f} | {ratio:.3f} |")
    return "\n".join(lines)


@app.default
def main(
    *,
    aiperf_program: Annotated[Path | None, Parameter(name="--aiperf")] = None,
    guidellm_program: Annotated[Path | None, Parameter(name="--guidellm")] = None,
    real: bool = False,
    pace: float = 0.05,
    rate: float = 8.0,
    streams: int = 8,
    requests: int = 160,
    prompt: int = 64,
    tokens: int = 32,
    rounds: int = 5,
) -> None:
    """Print a table for each client."""
    found: dict[str, tuple[list[Figures], list[Figures]]] = {}
    with (
        as_file(files("loraplex.adapters") / "demo") as bundle,
        tempfile.TemporaryDirectory() as scratch,
        serving(bundle, real=real, pace=pace) as url,
    ):
        folder, tokenizer = Path(scratch), bundle / "base" / "generator"
        load = Load(url, folder, tokenizer, rate, streams, requests, tokens)
        clients: dict[str, tuple[tuple[str, ...], Callable[[Load], Figures]]] = {}
        if aiperf_program:
            clients["aiperf"] = (ADAPTERS, partial(aiperf, aiperf_program))
        if guidellm_program:
            clients["guidellm"] = (ADAPTERS[:1], partial(guidellm, guidellm_program))
        for turn in range(rounds):
            for name, (adapters, other) in clients.items():
                write_prompts(folder, tokenizer, requests, prompt, tokens, seed=turn)
                both: dict[str, Callable[[Load], Figures]] = {"ours": partial(ours, adapters), name: other}
                order = list(both) if turn % 2 else list(both)[::-1]
                got = {each: both[each](load) for each in order}
                print(f"round {turn + 1}: {got}", file=sys.stderr, flush=True)
                mine, others = found.setdefault(name, ([], []))
                mine.append(got["ours"])
                others.append(got[name])
    for name, (mine, others) in found.items():
        print(f"\n{table(name, mine, others, closed=not rate)}")
    engine = "one thread of the real engine" if real else f"a token of every stream each {pace * 1000:g} ms"
    traffic = f"{rate:g} requests a second, Poisson" if rate else f"{streams} streams"
    print(f"\n{processor()}; {engine}; {traffic}.")
    print(f"{rounds} rounds of {requests} requests, {prompt} tokens in and {tokens} out.")


if __name__ == "__main__":
    app()
