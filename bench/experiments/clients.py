"""Programs that measure servers of the OpenAI API, under one load each, and what they found: ours, aiperf, guidellm."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.bench.errors import BenchFailed
from loraplex.bench.results.result_file import read

LONGEST = 900
"""Seconds that a client may take."""
MILLISECONDS = 1e3
NANOSECONDS = 1e9


class Asked(Struct, frozen=True):
    """One request."""

    prompt: str
    model: str
    tokens: int
    """To ask for; end tokens do not end the answer."""


class Load(Struct, frozen=True):
    """What a client sends; where `rate` is 0, each of so many streams sends its next request when one is answered."""

    url: str
    tokenizer: Path
    requests: Sequence[Asked]
    rate: float
    """Requests a second, at even intervals."""
    streams: int
    cores: frozenset[int]
    """That the client may run on."""


class Figures(Struct, frozen=True):
    """Medians over the requests of one run, in milliseconds."""

    ttft: float
    tpot: float
    """From the first token to the last, by the tokens after the first."""
    itl: float | None
    """Between one chunk with tokens and the next, over those of all requests; None where a client does not tell it."""
    itl_mean: float
    """The mean of the same."""
    e2el: float
    tokens_per_second: float
    """From the first request's start to the last one's end."""
    told_tokens_per_second: float | None
    """By the client's own clock."""
    client_cores: float = 0.0
    """That the client took from its start to its end, on average."""


class Ours:
    """`loraplex bench serve`."""

    name = "bench serve"
    several = True
    """Whether the requests of a run may be for different models."""

    def measure(self, load: Load, folder: Path) -> Figures:
        """Raises BenchFailed, as those of the others do."""
        prompts, path = folder / "prompts.jsonl", folder / "ours.json"
        _write(prompts, [{"prompt": e.prompt, "model": e.model, "output_tokens": e.tokens} for e in load.requests])
        command = [sys.executable, "-m", "loraplex.server", "bench", "serve", "--base-url", load.url]
        command += ["--dataset-name", "custom", "--dataset-path", str(prompts), "--disable-shuffle"]
        command += ["--custom-output-len", "-1", "--num-prompts", str(len(load.requests)), "--ignore-eos"]
        command += ["--model", load.requests[0].model, "--temperature", "0", "--metric-percentiles", "50"]
        if load.rate:
            command += ["--request-rate", str(load.rate), "--burstiness", "inf"]
        else:
            command += ["--max-concurrency", str(load.streams)]
        command += ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", path.name]
        cores = _run(command, load)
        (run,) = read(path)
        if run.totals.failed:
            raise BenchFailed(f"requests of bench serve failed: {run.totals.errors_by_kind}")
        found = run.totals.latencies
        return Figures(
            found["ttft"].median,
            found["tpot"].median,
            found["itl"].median,
            found["itl"].mean,
            found["e2el"].median,
            _rate([(each.start, each.start + each.latency, each.output_tokens) for each in run.requests]),
            run.totals.output_throughput,
            cores,
        )


class Aiperf:
    """NVIDIA's aiperf, 0.13 (github.com/ai-dynamo/aiperf)."""

    name = "aiperf"
    several = True

    def __init__(self, program: Path) -> None:
        self._program = program

    def measure(self, load: Load, folder: Path) -> Figures:
        prompts, artifacts = folder / "aiperf.jsonl", folder / "aiperf"
        # A line's `extra` overrules the model that the command names.
        lines = [{"text": e.prompt, "output_length": e.tokens, "extra": {"model": e.model}} for e in load.requests]
        _write(prompts, lines)
        command = [str(self._program), "profile", "-m", load.requests[0].model, "-u", load.url, "--streaming"]
        command += ["--endpoint-type", "completions", "--use-server-token-count", "--use-legacy-max-tokens"]
        command += ["--tokenizer", str(load.tokenizer), "--input-file", str(prompts)]
        command += ["--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential"]
        command += ["--request-count", str(len(load.requests)), "--artifact-dir", str(artifacts), "--ui", "none"]
        command += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
        if load.rate:
            command += ["--request-rate", str(load.rate), "--arrival-pattern", "constant"]
        else:
            command += ["--concurrency", str(load.streams)]
        cores = _run(command, load)
        found = _json(artifacts / "profile_export_aiperf.json")
        if found["request_count"]["avg"] != len(load.requests):
            raise BenchFailed(f"requests of aiperf failed: {found.get('error_summary')}")
        tokens = found["total_output_tokens"]["avg"] if "total_output_tokens" in found else None
        wanted = sum(each.tokens for each in load.requests)
        if tokens is not None and tokens != wanted:
            raise BenchFailed(f"aiperf got {tokens:g} tokens instead of {wanted}")
        exported = (artifacts / "profile_export.jsonl").read_bytes().splitlines()
        records = [msgspec.json.decode(line, type=dict[str, Any]) for line in exported]
        return Figures(
            found["time_to_first_token"]["p50"],
            found["inter_token_latency"]["p50"],
            found["inter_chunk_latency"]["p50"],
            found["inter_chunk_latency"]["avg"],
            found["request_latency"]["p50"],
            _rate(
                [
                    (
                        each["metadata"]["request_start_ns"] / NANOSECONDS,
                        each["metadata"]["request_end_ns"] / NANOSECONDS,
                        each["metrics"]["output_sequence_length"]["value"],
                    )
                    for each in records
                ]
            ),
            found["output_token_throughput"]["avg"],
            cores,
        )


class Guidellm:
    """guidellm, 0.8 (github.com/vllm-project/guidellm). It asks for one model a run."""

    name = "guidellm"
    several = False

    def __init__(self, program: Path) -> None:
        self._program = program

    def measure(self, load: Load, folder: Path) -> Figures:
        prompts, path = folder / "guidellm.jsonl", folder / "guidellm.json"
        _write(prompts, [{"prompt": e.prompt, "output_tokens_count": e.tokens} for e in load.requests])
        model = msgspec.json.encode(load.requests[0].model).decode()  # quoted, or a name like 0 would be a number
        backend = f"kind=openai_http,target={load.url},model={model},request_format=/v1/completions"
        profile = f"kind=constant,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}"
        command = [str(self._program), "run", "--backend", backend, "--profile", profile]
        command += ["--constraint", f"kind=max_requests,count={len(load.requests)}"]
        command += ["--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={path}"]
        command += ["--tokenizer", f"kind=hf_auto,model={load.tokenizer}", "--disable-console-interactive"]
        cores = _run(command, load)
        (benchmark,) = _json(path)["benchmarks"]
        requests = benchmark["requests"]["successful"]
        if len(requests) != len(load.requests):
            counts = {kind: len(some) for kind, some in benchmark["requests"].items() if some}
            raise BenchFailed(f"guidellm was given {len(load.requests)} requests and tells {counts}")
        # Its own statistics of what it calls inter-token latency weigh a request by its tokens; here each counts once.
        # It keeps no times between the first chunk and the last, but their number: so ITL has a mean alone.
        chunks = [each["info"]["timings"] for each in requests]
        waited = sum(each["last_token_iteration"] - each["first_token_iteration"] for each in chunks)
        return Figures(
            median(each["time_to_first_token_ms"] for each in requests),
            median(each["inter_token_latency_ms"] for each in requests),
            None,
            MILLISECONDS * waited / sum(each["token_iterations"] - 1 for each in chunks),
            median(each["request_latency"] for each in requests) * MILLISECONDS,
            _rate([(e["request_start_time"], e["request_end_time"], e["output_tokens"]) for e in requests]),
            benchmark["metrics"]["output_tokens_per_second"]["successful"]["mean"],
            cores,
        )


Client = Ours | Aiperf | Guidellm


def _rate(requests: Sequence[tuple[float, float, int]]) -> float:
    """Tokens a second, of requests with their starts and ends in seconds and their tokens."""
    starts, ends, tokens = zip(*requests, strict=True)
    return float(sum(tokens) / (max(ends) - min(starts)))


def _run(command: Sequence[str], load: Load) -> float:
    """Run a client on its cores; returns how many of them it took."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    environment.pop("HF_HUB_OFFLINE", None)  # aiperf takes no path for a tokenizer then
    began, before = time.monotonic(), _cpu_seconds()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=LONGEST,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, load.cores),
    )
    if done.returncode:
        raise BenchFailed(f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return (_cpu_seconds() - before) / (time.monotonic() - began)


def _cpu_seconds() -> float:
    """Of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
