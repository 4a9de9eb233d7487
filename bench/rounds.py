"""Runs of the same thing under the same load: rounds of one measurement, whose medians count."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from msgspec import Struct

from loraplex.bench.lanes.measure import measured
from loraplex.bench.results.result import Run


class Rounds(Struct, frozen=True):
    """One label under one load."""

    label: str
    load: str
    runs: list[Run]

    @property
    def name(self) -> str:
        return f"{self.label}, {self.load}"

    def median(self, key: str) -> float | None:
        """Of a measure of `measure.MEASURES`; None where no round has it."""
        values = [found[key] for run in self.runs if key in (found := measured(run))]
        return median(values) if values else None


def grouped(runs: Iterable[Run]) -> list[Rounds]:
    """In the order in which they came; runs without a label go by their model."""
    found: dict[tuple[str, str], Rounds] = {}
    for run in runs:
        label, load = run.configuration.label or run.configuration.model_id, load_of(run)
        found.setdefault((label, load), Rounds(label, load, [])).runs.append(run)
    return list(found.values())


def load_of(run: Run) -> str:
    """The load in words: `8 at once`, `2 requests/s`."""
    asked = run.configuration
    rate = "" if math.isinf(asked.request_rate) else f"{asked.request_rate:g} requests/s"
    streams = "" if asked.max_concurrency is None else f"{asked.max_concurrency} at once"
    if asked.ramp_up_strategy is not None:
        rate = f"{asked.ramp_up_start_rps} to {asked.ramp_up_end_rps} requests/s"
    if asked.multi_turn:
        rate = rate.replace("requests", "conversations")
        if asked.multi_turn_concurrency is not None:
            fewer = asked.max_concurrency not in (None, asked.multi_turn_concurrency)
            streams = f"{asked.multi_turn_concurrency} conversations at once" + f", {streams}" * fewer
    return ", ".join(filter(None, (rate, streams))) or "all at once"
