"""Ratios of ours against ours, in one run on one machine, beside those that were saved: what a change must not lose.

    python -m loraplex.bench.baseline [--rounds 5] [--write]

measures the demo bundle with eight streams and prints the ratios; --write saves them as the new baseline, with the
machine, the versions, this command and what other processes took of the machine meanwhile. Times differ from machine to
machine, ratios little; time on the CPU is counted, so that busy neighbours matter little. They still share caches and
clocks with us: write on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median

import msgspec
import psutil
from cyclopts import App
from msgspec import Struct

from loraplex.bench.lanes.engine_bench import Bench, LaneOptions
from loraplex.bench.lanes.engine_table import rounds_by_case, share
from loraplex.bench.machine import machine, versions
from loraplex.bench.results.result import Run
from loraplex.server.bundle import Bundle

FILE = Path(__file__).with_name("baseline.json")
STREAMS = 8
DROP = 0.15
"""Share of a saved ratio that may be lost before it is told."""
BUSY = 0.1
"""Cores that others may take of a machine that is called quiet."""

app = App(help=__doc__)


class Baseline(Struct, frozen=True):
    """baseline.json."""

    ratios: dict[str, float]
    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    command: str = ""
    busy_cores: float | None = None
    """That other processes took before and after, on average; None where it was not looked at."""


def measure(rounds: int) -> dict[str, float]:
    """Output tokens for each second on the CPU, as ratios, medians over the rounds. Raises LoraplexError."""
    with as_file(files("loraplex.adapters") / "demo") as folder:
        bundle = Bundle.open(folder)
        count = len(bundle.manifest.adapters)
        bench = Bench(
            bundle,
            lanes=("batched", "generator"),
            counts=(count,),
            streams=(STREAMS,),
            lengths=(64, 48),
            options=LaneOptions(threads=1, device="cpu"),
            http=True,
            cpu_time=True,
        )
        runs = bench.run(rounds)
    return ratios(runs, count)


def ratios(runs: Sequence[Run], count: int) -> dict[str, float]:
    """Of the cases that `measure` runs, with `count` adapters."""
    found = rounds_by_case(runs)

    def ratio(lane: str, over: str, adapters: int, other: tuple[str, str, int]) -> float:
        return median(share(found[lane, over, adapters, STREAMS], found[(*other, STREAMS)]))

    return {
        "batched lane / generator lane": ratio("batched", "engine", count, ("generator", "engine", count)),
        "adapters / base, batched lane": ratio("batched", "engine", count, ("batched", "engine", 0)),
        "adapters / base, generator lane": ratio("generator", "engine", count, ("generator", "engine", 0)),
        "HTTP / engine, batched lane": ratio("batched", "HTTP", count, ("batched", "engine", count)),
    }


def drops(found: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """A line for each ratio that lost more than DROP of what was saved."""
    return [
        f"{name}: {value:.2f}, saved is {saved[name]:.2f}"
        for name, value in found.items()
        if name in saved and value < (1 - DROP) * saved[name]
    ]


def busy_cores() -> float:
    """What other processes take of the machine now, over a second in which this one does nothing."""
    return psutil.cpu_percent(1.0) / 100 * (psutil.cpu_count() or 1)


def read_baseline() -> Baseline:
    return msgspec.json.decode(FILE.read_bytes(), type=Baseline)


@app.default
def main(*, rounds: int = 5, write: bool = False) -> None:
    """Measure, and print the ratios."""
    before = busy_cores()
    found = measure(rounds)
    busy = (before + busy_cores()) / 2
    saved = read_baseline().ratios if FILE.is_file() else {}
    for name, value in found.items():
        print(f"{name}: {value:.2f}" + (f" (saved: {saved[name]:.2f})" if name in saved else ""))
    if busy > BUSY:
        print(f"warning: other processes took {busy:.2f} cores: measure on a quiet machine what is to be saved")
    if write:
        command = f"python -m loraplex.bench.baseline --rounds {rounds} --write"
        made = Baseline(found, f"{datetime.now():%Y-%m-%d}", machine(), versions(), command, round(busy, 3))
        FILE.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")


if __name__ == "__main__":
    app()
