"""`loraplex bench compare`: results of several runs side by side, as ratios to the first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loraplex.bench.errors import BenchFailed
from loraplex.bench.lanes.measure import BRIEF, MEASURES, text
from loraplex.bench.results.comparison import NOTED, By, Figure, Point
from loraplex.bench.results.comparison import compare as compare_runs
from loraplex.bench.results.output import prepare
from loraplex.bench.results.result_file import read

TITLE, COLUMN, RATIO = 38, 16, 10
"""Characters that a metric's name, a side and its ratio are given."""


def compare(
    results: Annotated[tuple[Path, ...], Parameter(negative="")],
    /,
    *,
    by: By = "label",
    all_metrics: Annotated[bool, Parameter(negative="")] = False,
    warn_below: Annotated[float, Parameter(validator=Number(gt=0))] | None = None,
    json: Path | None = None,
    html: Path | None = None,
) -> None:
    """Put results side by side; the first is the baseline.

    Parameters
    ----------
    results
        JSON files of `bench serve --save-result`, `bench sweep`, `bench engine` or `vllm bench serve`. Runs with the
        same label under the same load are rounds: their medians are compared.
    by
        What is compared: label, or file where several files have the same labels.
    all_metrics
        Show every metric, not only the usual ones.
    warn_below
        Warn of each figure that is worse than this share of the baseline's, such as 0.85. The exit code stays 0.
    json
        File to write the comparison to.
    html
        Page to write it to.
    """
    try:
        prepare(*(path for path in (json, html) if path is not None))
        files = {path: read(path) for path in results}
        found = compare_runs(files, tuple(MEASURES) if all_metrics else BRIEF, by)
    except BenchFailed as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    console = Console()
    baseline, *others = found.sides
    # As many sides beside each other as there is room for.
    room = max(1, (console.width - TITLE - COLUMN) // (COLUMN + RATIO))
    for point in found.points:
        for first in range(0, len(others), room):
            console.print(_table(baseline, others[first : first + room], point))
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if warn_below is not None:
        for line in found.below(warn_below):
            print(f"warning: {line}", file=sys.stderr)
    try:
        if json is not None:
            json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        if html is not None:
            from loraplex.bench.results.report import write_comparison

            write_comparison(found, [run for runs in files.values() for run in runs], html)
    except OSError as error:
        sys.exit(f"loraplex: {error}")


def _table(baseline: str, others: Sequence[str], point: Point) -> Table:
    table = Table(title=point.name, title_justify="left", header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column(baseline, justify="right", overflow="fold")
    for side in others:
        table.add_column(side, justify="right", overflow="fold")
        table.add_column("ratio", justify="right", no_wrap=True)
    for key, figures in point.figures.items():
        measure = MEASURES[key]
        cells: list[str | Text] = [f"{measure.title}, {measure.unit}" if measure.unit else measure.title]
        for side in (baseline, *others):
            figure = figures.get(side)
            cells.append(text(figure.median) if figure else "")
            if side != baseline:
                cells.append(_ratio(figure))
        table.add_row(*cells)
    rounds = max(len(figure.values) for figures in point.figures.values() for figure in figures.values())
    table.caption = f"ratios to {baseline}: + is better, - is worse, by {NOTED:.0%} or more; "
    if rounds > 1:
        table.caption += f"medians of up to {rounds} rounds"
    else:
        table.caption += "one round each, so noise counts in full: measure A B A B"
    table.caption_justify = "left"
    return table


def _ratio(figure: Figure | None) -> Text:
    if figure is None or figure.ratio is None:
        return Text("")
    mark, style = {"good": ("+", "green"), "bad": ("-", "red"), "": (" ", "")}[figure.verdict]
    return Text(f"{figure.ratio:.2f} {mark}", style=style)
