"""Runs under heavier and heavier load, until the server is saturated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from loraplex.bench.errors import Interrupted, OptionsInvalid, ServerFailed
from loraplex.bench.load.benchmark import Options, benchmark, check
from loraplex.bench.load.steps import Steps
from loraplex.bench.results import result_file
from loraplex.bench.results.output import file_label, prepare
from loraplex.bench.results.result import Run

SUMMARY = "sweep.json"
HEADER = f"{'':>12}{'req/s':>10}{'goodput':>10}{'tok/s':>10}{'TTFT ms':>10}{'TPOT ms':>10}{'failed':>8}{'client':>8}"


class Point(Struct, frozen=True):
    """One step."""

    value: float
    """Requests at once, or a second."""
    file: str
    """The run, beside the summary."""
    completed: int
    failed: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    mean_ttft_ms: float
    mean_tpot_ms: float
    client_core_share: float

    def line(self) -> str:
        """Under HEADER."""
        goodput = "" if self.request_goodput is None else f"{self.request_goodput:.2f}"
        return (
            f"{self.value:>12g}{self.request_throughput:>10.2f}{goodput:>10}{self.output_throughput:>10.1f}"
            f"{self.mean_ttft_ms:>10.2f}{self.mean_tpot_ms:>10.2f}{self.failed:>8}{self.client_core_share:>8.0%}"
        )


class Sweep(Struct, frozen=True):
    """All steps, from light to heavy."""

    over: Literal["concurrency", "rate"]
    points: list[Point]
    best: float | None
    """The step with the most output tokens a second; with --goodput, the most requests within the objectives. One in
    which requests failed is it only where they did in all."""
    stopped: str
    """Why it went no further."""
    interrupted: bool = False
    failed: bool = False
    """The server stopped answering."""


async def sweep(options: Options, steps: Steps, folder: Path, done: Callable[[Point], None]) -> tuple[Sweep, list[Run]]:
    """Run step after step, writing each run to `folder`, and beside it the summary of all so far.

    SIGINT ends it after the last whole step. Raises what `benchmark` does.
    """
    check(options)
    steps.check(options.traffic)
    if steps.over == "concurrency" and options.turns.multi_turn_concurrency is not None:
        raise OptionsInvalid("--over concurrency sets it: leave out --multi-turn-concurrency, or give --over rate")
    prepare(folder / SUMMARY)
    if options.data.dataset_name in ("trace", "timed_trace") and options.traffic.self_timed is not False:
        raise OptionsInvalid("a trace sets its own load: give --no-self-timed")
    runs: list[Run] = []
    found = Sweep(steps.over, [], None, "")
    label = options.report.label or options.target.backend
    values = list(steps)
    for index, value in enumerate(values):
        run: Run | None = None
        try:
            with suppress(Interrupted):
                run = await benchmark(_at(options, steps, value, index))
        except ServerFailed as error:
            if not runs:
                raise
            return _written(steps, found.points, f"at {value:g}: {error.message}", folder, failed=True), runs
        if run is None or run.interrupted:
            if not runs:
                raise Interrupted("interrupted before a step was done")
            stopped = f"interrupted at {value:g}, which is left out"
            return _written(steps, found.points, stopped, folder, interrupted=True), runs
        name = f"{file_label(label)}-{steps.over}{value:g}.json"
        result_file.write(run, folder / name, detailed=options.report.save_detailed)
        runs.append(run)
        points = [*found.points, _point(run, value, name)]
        done(points[-1])
        reason = run.failure or saturated(points, steps)
        last = "the last step is done" if value == values[-1] else "not finished"
        found = _written(steps, points, reason or last, folder)
        if reason:
            break
    return found, runs


def _written(
    steps: Steps,
    points: list[Point],
    stopped: str,
    folder: Path,
    *,
    interrupted: bool = False,
    failed: bool = False,
) -> Sweep:
    found = Sweep(steps.over, points, best(points), stopped, interrupted, failed)
    (folder / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return found


def saturated(points: Sequence[Point], steps: Steps) -> str | None:
    """Why the last step was the last that is worth it; None while there may be more."""
    last = points[-1]
    if last.request_goodput is not None and last.completed:
        # Both rates are of those that succeeded; one that failed met no objective.
        succeeded = last.completed / (last.completed + last.failed)
        share = last.request_goodput / last.request_throughput * succeeded
    else:
        share = 1.0
    if share < steps.min_goodput:
        return f"only {share:.0%} of the requests met the objectives"
    if len(points) > 1:
        before = max(each.output_throughput for each in points[:-1])
        gain = last.output_throughput / before - 1 if before else 1.0
        if gain < steps.min_gain:
            return f"output tokens a second changed by {gain:+.1%}, less than --min-gain {steps.min_gain:.0%}"
    return None


def best(points: Sequence[Point]) -> float | None:
    good = [each for each in points if each.completed]
    if not good:
        return None
    return max(good, key=lambda each: (not each.failed, each.request_goodput or 0.0, each.output_throughput)).value


def _at(options: Options, steps: Steps, value: float, index: int) -> Options:
    """The flags of one step. Prompts differ from step to step, or a prefix cache would answer the later ones."""
    count = steps.prompts(value, options.data.num_prompts)
    data = replace(options.data, num_prompts=count, seed=options.data.seed + index)
    traffic = options.traffic
    if steps.over == "rate":
        traffic = replace(traffic, request_rate=value)
    else:
        traffic = replace(traffic, max_concurrency=int(value))
    return replace(options, data=data, traffic=traffic)


def _point(run: Run, value: float, file: str) -> Point:
    totals = run.totals

    def mean(metric: Literal["ttft", "tpot"]) -> float:
        return totals.latencies[metric].mean if metric in totals.latencies else 0.0

    return Point(
        value,
        file,
        totals.completed,
        totals.failed,
        totals.request_throughput,
        totals.request_goodput,
        totals.output_throughput,
        mean("ttft"),
        mean("tpot"),
        run.client.core_share,
    )
