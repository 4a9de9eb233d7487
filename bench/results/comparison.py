"""Runs side by side: the first side is the baseline, and every figure of the others is told as a ratio to it.

A *side* is what is compared: a label, or a file. Runs of one side under the same load are rounds, and their median
counts. A *point* is a load that several sides were put under: a request rate and a concurrency.
"""

from __future__ import annotations

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
"""How far mean lengths may be apart, as a share, before a shape is called another."""


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
    """Shapes that are not the same, loads that one side lacks."""
    setups: dict[str, dict[str, str]]
    """By side: date, command, machine, versions."""

    def below(self, limit: float) -> list[str]:
        """One line for each figure whose gain is under the limit."""
        return [
            f"{side}, {point.name}: {MEASURES[key].title} is {figure.gain:.2f} of {self.sides[0]}"
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
            f"every run is of {sides[0]!r}, so there is nothing to compare it with: give runs another --label, "
            "or compare by file with --by file"
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
    for point in common:
        warnings += _differences(point, {side: rounds[side][point] for side in sides if point in rounds[side]})
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


def _differences(point: str, rounds: Mapping[str, Sequence[Run]]) -> list[str]:
    """What makes a comparison at this point one of different work."""
    shapes = {side: _shape(runs[0]) for side, runs in rounds.items()}
    (first, shape), *others = shapes.items()
    found = []
    for side, other in others:
        for what, value in shape.items():
            if not _alike(value, other[what]):
                found.append(f"{point}: {what} {value} of {first}, {other[what]} of {side}")
    return found


def _shape(run: Run) -> dict[str, float | str]:
    asked, done = run.configuration, max(1, run.totals.completed)
    shape: dict[str, float | str] = {
        "prompt tokens a request": round(run.totals.total_input_tokens / done, 1),
        "output tokens a request": round(run.totals.total_output_tokens / done, 1),
        "requests": asked.num_prompts or run.totals.completed,
        "failed requests": run.totals.failed,
        "dataset": asked.dataset or "not told",
        "seed": asked.seed,
    }
    return shape


def _alike(one: float | str, other: float | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return abs(one - other) <= ALIKE * max(abs(one), abs(other))
