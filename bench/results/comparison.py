"""Runs side by side: the first side is the baseline, and every figure of the others is told as a ratio to it.

A *side* is what is compared: a label, or a file. Runs of one side under the same load are rounds, and their median
counts. A *point* is a load that several sides were put under: a request rate and a concurrency.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from msgspec import Struct

from loraplex.bench.errors import ResultInvalid
from loraplex.bench.lanes.measure import MEASURES, measured
from loraplex.bench.provenance import provenance
from loraplex.bench.results.result import Run
from loraplex.bench.rounds import load_of

By = Literal["label", "file"]
NOTED = 0.03
"""Gains and losses smaller than this are noise on most machines, and get no colour."""
ALIKE = 0.05
"""How far numbers may be apart, as a share, before the work is called another."""
MOST_NAMES = 6
"""Adapters that a line names."""

Value = float | str | tuple[str, ...] | None


class Figure(Struct, frozen=True):
    """One measure of one side."""

    values: list[float]
    """Over the rounds."""
    median: float
    ratio: float | None = None
    """To the baseline: where both have as many rounds, the median of the rounds' ratios, else the ratio of the medians.
    None where the baseline has no such figure, or 0."""
    gain: float | None = None
    """The ratio turned so that over 1 is better."""

    @property
    def verdict(self) -> Literal["good", "bad", ""]:
        """Whether it is better or worse than the baseline's by more than noise."""
        if self.gain is None or abs(self.gain - 1) < NOTED:
            return ""
        return "good" if self.gain > 1 else "bad"


class Point(Struct, frozen=True):
    """One load."""

    name: str
    figures: dict[str, dict[str, Figure]]
    """By measure, then by side."""


class Comparison(Struct, frozen=True):
    sides: list[str]
    """The baseline first."""
    points: list[Point]
    warnings: list[str]
    """What makes it a comparison of different work, a line each."""
    setups: dict[str, dict[str, str]]
    """By side: date, command, machine, versions."""

    def below(self, limit: float) -> list[str]:
        """One line for each figure whose gain is under the limit."""
        return [
            f"{side}, {point.name}: {MEASURES[key].title} is {figure.ratio:.2f} times that of {self.sides[0]}"
            for point in self.points
            for key, figures in point.figures.items()
            for side, figure in figures.items()
            if figure.gain is not None and figure.gain < limit
        ]


def compare(files: Mapping[Path, Sequence[Run]], measures: Sequence[str], by: By = "label") -> Comparison:
    """Put the runs of these files side by side.

    By label, runs without one go by their file's name. By file, each label of a file is a load of its own. Raises
    ResultInvalid where there is one side only.
    """
    rounds: dict[str, dict[str, list[Run]]] = {}
    stems = Counter(path.stem for path in files)
    for path, runs in files.items():
        for run in runs:
            label = run.configuration.label
            side, point = path.stem if stems[path.stem] == 1 else str(path), load_of(run)
            if by == "label":
                side = label or side
            elif label:
                point = f"{label}, {point}"
            rounds.setdefault(side, {}).setdefault(point, []).append(run)
    sides = list(rounds)
    if len(sides) < 2:
        raise ResultInvalid(
            f"every run is of {sides[0]!r}, so there is nothing to compare it with: "
            + ("name another file" if by == "file" else "give runs another --label, or compare by file with --by file")
        )
    warnings: list[str] = []
    loads = {side: list(points) for side, points in rounds.items()}
    if all(len(points) == 1 for points in loads.values()):
        # Whatever the loads are, these are what somebody wants compared.
        names = dict.fromkeys(point for points in loads.values() for point in points)
        common = [" / ".join(names)]
        if len(names) > 1:
            warnings.append(f"the loads differ: {'; '.join(f'{side}: {loads[side][0]}' for side in sides)}")
        rounds = {side: {common[0]: next(iter(points.values()))} for side, points in rounds.items()}
    else:
        common = [point for point in loads[sides[0]] if any(point in loads[side] for side in sides[1:])]
        for side in sides[1:]:
            lacking = [point for point in loads[sides[0]] if point not in loads[side]]
            more = [point for point in loads[side] if point not in loads[sides[0]]]
            if lacking or more:
                warnings.append(f"only one of {sides[0]} and {side} was measured at: {'; '.join([*lacking, *more])}")
        if not common:
            raise ResultInvalid(f"{sides[0]} has no load in common with another: {loads[sides[0]][0]} is none of them")
    warnings += _differences(sides, rounds, common)
    points = [_point(point, {side: rounds[side].get(point, []) for side in sides}, measures) for point in common]
    setups = {side: provenance(next(iter(points.values()))[0]) for side, points in rounds.items()}
    return Comparison(sides, points, warnings, setups)


def _point(name: str, rounds: Mapping[str, Sequence[Run]], measures: Sequence[str]) -> Point:
    found = {side: [measured(run) for run in runs] for side, runs in rounds.items()}
    baseline = next(iter(found))
    figures: dict[str, dict[str, Figure]] = {}
    for key in measures:
        values = {side: [each[key] for each in runs if key in each] for side, runs in found.items()}
        if any(values.values()):
            figures[key] = {side: _figure(key, own, values[baseline]) for side, own in values.items() if own}
            figures[key] = {
                side: Figure(figure.values, figure.median) if side == baseline else figure
                for side, figure in figures[key].items()
            }
    return Point(name, figures)


def _figure(key: str, values: list[float], baseline: list[float]) -> Figure:
    ratio = _ratio(values, baseline)
    gain = ratio if ratio is None or MEASURES[key].higher else 1 / ratio if ratio else None
    return Figure(values, median(values), ratio, gain)


def _ratio(values: list[float], baseline: list[float]) -> float | None:
    if not baseline or not all(baseline):
        return None
    if len(values) == len(baseline):
        return median(own / other for own, other in zip(values, baseline, strict=True))
    return median(values) / median(baseline)


def _differences(sides: Sequence[str], rounds: Mapping[str, dict[str, list[Run]]], common: Sequence[str]) -> list[str]:
    """A line for each thing that is another at a side than at the baseline; it names the points, unless it is all."""
    found: dict[str, list[str]] = {}
    first, *others = sides
    for point in common:
        for side in others:
            if point not in rounds[side]:
                continue
            asked, other = (_work(rounds[each][point]) for each in (first, side))
            for what, value in asked.items():
                if not _alike(value, other[what]):
                    line = f"{what}: {first} has {_told(value)}, {side} has {_told(other[what])}"
                    found.setdefault(line, []).append(point)
    return [line if points == list(common) else f"{line} ({'; '.join(points)})" for line, points in found.items()]


def _work(rounds: Sequence[Run]) -> dict[str, Value]:
    """What was asked for, and what came of it that should not differ; of rounds, the first's."""
    run = rounds[0]
    asked, done = run.configuration, max(1, run.totals.completed)
    ours = bool(asked.dataset)  # vLLM's file does not tell these
    mixed = asked.adapter_mix or len(asked.adapters) > 1
    return {
        "model": asked.model_id or None,
        "endpoint": {"vllm": "openai", "engine": None}.get(asked.backend, asked.backend),
        "dataset": asked.dataset or None,
        "adapters": (tuple(sorted(asked.adapters)) if mixed else ()) if ours else None,
        "adapter mix": asked.adapter_mix or None,
        "burstiness": asked.burstiness if math.isfinite(asked.request_rate) else None,
        "seed": asked.seed if ours else None,
        "objectives": tuple(sorted(f"{name}:{limit:g}" for name, limit in asked.goodput.items())) or None,
        "conversations": _conversations(run) if ours else None,
        "requests": asked.num_prompts - run.unsent if asked.num_prompts and not run.turns else run.totals.completed,
        "prompt tokens a request": round(run.totals.total_input_tokens / done, 1),
        "output tokens a request": round(run.totals.total_output_tokens / done, 1),
        "failed requests": max(each.totals.failed for each in rounds),
        "unfinished requests": max(each.unfinished for each in rounds),
    }


def _conversations(run: Run) -> str:
    asked = run.configuration
    if not asked.multi_turn:
        return "none"
    limit = "" if asked.multi_turn_concurrency is None else f", {asked.multi_turn_concurrency} at once"
    return f"{asked.num_prompts} of up to {len(run.turns)} turns, {asked.multi_turn_delay_ms:g} ms between them{limit}"


def _alike(one: Value, other: Value) -> bool:
    """Whether they are the same, or a file of another program does not tell."""
    if one is None or other is None:
        return True
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= ALIKE * max(abs(one), abs(other))
    return one == other


def _told(value: Value) -> str:
    if not isinstance(value, tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    names = ", ".join(value[:MOST_NAMES])
    return f"{names} and {len(value) - MOST_NAMES} more" if len(value) > MOST_NAMES else names or "none"
