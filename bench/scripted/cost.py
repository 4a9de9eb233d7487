"""What the HTTP layer costs by itself: the server's API process in front of an engine that computes nothing.

    loraplex bench http [--rounds 3]

128 streams, first as fast as tokens can be passed on, then at a given pace; the same for the least that a server can do
(floor.py). Prints a Markdown table: medians over the rounds. Processor time is that of the API process alone.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
import numpy as np
import psutil
from cyclopts import App, Parameter
from msgspec import Struct

from loraplex.bench.load.flags import AtLeastOne
from loraplex.bench.machine import processor
from loraplex.bench.scripted.client import Endpoint, Told
from loraplex.server.bundle import Bundle
from loraplex.server.text.tokenizer import Text

SCRIPT = (
    "The Eiffel Tower stands in Paris, the capital of France, and the Louvre is a museum nearby. "
    "Rome is the capital of Italy, where the Colosseum is, and Madrid is the capital of Spain."
)
WARM = 0.1
"""Share of a stream's first tokens whose delay does not count: requests are still being read then."""

app = App(help=__doc__)


class Load(Struct, frozen=True):
    """What the engine is made to say."""

    name: str
    rate: float
    """Tokens a second, of all streams together; 0 is as fast as can be."""
    together: bool
    tokens: int
    """Of each stream."""


class Measured(Struct, frozen=True):
    """One run."""

    rate: float
    """Tokens a second that came."""
    per_cpu_second: float
    """Tokens for each second of processor time of the API process."""
    cores: float
    """Of the API process, while it lasted."""
    delays: tuple[float, float]
    """Median and 99th percentile, milliseconds from a token's output by the engine to its event's arrival."""
    events_a_read: float
    client_cores: float


def loads(streams: int, tokens: int, rates: Sequence[int]) -> list[Load]:
    found = [Load("as fast as can be", 0, True, tokens)]
    for rate in rates:
        least = max(64, round(10 * rate / streams))  # ten seconds
        for together in (True, False):
            how = "in steps" if together else "evenly"
            found.append(Load(f"{rate:,} tokens/s, {how}", rate, together, min(tokens, least)))
    return found


def options(load: Load, streams: int, script: Sequence[int], stamps: Path) -> str:
    """Of the scripted engine."""
    seconds = streams / load.rate if load.rate else 0.0
    pace = f"--seconds {seconds} {'--together' if load.together else '--no-together'}"
    return f"{pace} --stamps {stamps} " + " ".join(f"--script {token}" for token in script)


@contextmanager
def running(module: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server's URL and process once it is ready."""
    command = [sys.executable, "-m", f"loraplex.bench.scripted.{module}", *arguments]
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            while not (found := re.search(r"ready on (http://\S+);", log.read_text())):
                if process.poll() is not None:
                    raise RuntimeError(f"{module} did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, server: psutil.Process, load: Load, streams: int, endpoint: Endpoint, stamps: Path) -> Measured:
    """One run against a server that stands."""
    arrivals = stamps.with_name("arrivals.npy")
    command = [sys.executable, "-m", "loraplex.bench.scripted.client", url, "--arrivals", str(arrivals)]
    command += ["--endpoint", endpoint, "--streams", str(streams), "--tokens", str(load.tokens)]
    for model in ("plex", "travel", "tone", "json"):
        command += ["--models", model]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    if client.stdout.readline() != "connected\n":
        raise RuntimeError("the client did not connect")
    before = cpu_seconds(server)
    said, _ = client.communicate("\n")
    cpu = cpu_seconds(server) - before
    if client.returncode:
        raise RuntimeError("the client failed")
    told = msgspec.json.decode(said, type=Told)
    if len(told.texts) != 1:
        raise RuntimeError(f"{len(told.texts)} different answers came in place of one")
    warm = int(load.tokens * WARM)
    delays = (np.load(arrivals) - np.load(stamps)[:streams, : load.tokens])[:, warm:] * 1000
    count, seconds = streams * load.tokens, told.ended - told.started
    return Measured(
        count / seconds,
        count / cpu,
        cpu / seconds,
        (float(np.percentile(delays, 50)), float(np.percentile(delays, 99))),
        count / told.reads,
        told.cpu_seconds / seconds,
    )


def cpu_seconds(process: psutil.Process) -> float:
    """What the process has used so far, to the nanosecond on Linux: ticks of 10 ms say little of a short run."""
    try:
        # https://docs.kernel.org/scheduler/sched-stats.html: time on a processor is the first number.
        threads = [Path(f"/proc/{process.pid}/task/{thread.id}/schedstat") for thread in process.threads()]
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    except FileNotFoundError:
        times = process.cpu_times()
        return float(times.user + times.system)


def row(name: str, server: str, found: Sequence[Measured]) -> str:
    def middle(of: str) -> float:
        return float(statistics.median(getattr(each, of) for each in found))

    delays = [statistics.median(each.delays[index] for each in found) for index in (0, 1)]
    delay = f"{delays[0]:.2f} | {delays[1]:.2f}" if "tokens/s" in name else "- | -"
    return (
        f"| {name} | {server} | {middle('rate'):,.0f} | {middle('per_cpu_second'):,.0f} | {middle('cores'):.2f} "
        f"| {delay} | {middle('events_a_read'):.1f} | {middle('client_cores'):.2f} |"
    )


@app.default
def http(
    *,
    streams: AtLeastOne = 128,
    tokens: AtLeastOne = 1024,
    rates: Annotated[tuple[AtLeastOne, ...], Parameter(consume_multiple=True, negative="")] = (5000, 20000),
    rounds: AtLeastOne = 3,
    endpoint: Endpoint = "chat",
) -> None:
    """Measure what the HTTP layer costs by itself, in front of an engine that computes nothing.

    Parameters
    ----------
    streams
        Requests at once.
    tokens
        Longest answer; each has as many tokens as ten seconds take at its pace.
    rates
        Paces, in tokens a second of all streams together.
    rounds
        How often each is measured.
    endpoint
        Which one is asked.
    """
    print("| load | server | tokens/s | tokens per CPU s | cores | delay p50, ms | p99, ms | events a read | client |")
    print("|---|---|---|---|---|---|---|---|---|")
    with as_file(files("loraplex.adapters") / "demo") as folder, TemporaryDirectory() as scratch:
        bundle = Bundle.open(folder)
        script = asyncio.run(Text(bundle.variant("generator")).encode(SCRIPT, add_special_tokens=False))
        stamps = Path(scratch) / "stamps.npy"
        for load in loads(streams, tokens, rates):
            np.save(stamps, np.zeros((streams, load.tokens)))
            engine = f"--engine-options={options(load, streams, script, stamps)}"
            found: dict[str, list[Measured]] = {"floor": [], "loraplex": []}
            with (
                running("floor", str(folder), engine) as floor,
                running("server", str(folder), engine, "--port", "0", "--max-running", str(streams)) as server,
            ):
                for _ in range(rounds):
                    found["floor"].append(ask(*floor, load, streams, endpoint, stamps))
                    found["loraplex"].append(ask(*server, load, streams, endpoint, stamps))
            for name, measured in found.items():
                print(row(load.name, name, measured), flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("loraplex", "starlette", "sse-starlette", "uvicorn"))
    print(
        "\nfloor is the least that a server can do: a constant event for each token, over bare sockets. Delay: from a\n"
        "token's output by the engine to its event's arrival. Client: the cores that the client took."
    )
    print(f"\n{processor()}; Python {sys.version.split()[0]}; {packages}; {streams} streams; rounds: {rounds}.")


if __name__ == "__main__":
    app()
