"""One HTML page of results, plots included, that can be sent around; and the plots as PNGs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from msgspec import Struct

from loraplex.bench.lanes.measure import MEASURES, text
from loraplex.bench.provenance import date, provenance
from loraplex.bench.results.comparison import Comparison
from loraplex.bench.results.figure import png, svg
from loraplex.bench.results.load_plots import overview
from loraplex.bench.results.remarks import notes, warnings
from loraplex.bench.results.result import Run
from loraplex.bench.results.run_plots import course
from loraplex.bench.results.summary import MOST_TURNS, cached_share, in_time
from loraplex.bench.rounds import Rounds, grouped

RATES = {"output_throughput": "tokens", "request_throughput": "requests", "request_goodput": "goodput"}
LATENCIES = ("ttft", "tpot", "itl", "e2el")
HEADINGS = {
    "latency-over-rate": "Latency over rate",
    "throughput-over-concurrency": "Over concurrency",
    "distributions": "Distribution of TTFT and ITL",
    "adapters": "What each adapter got",
    "timeline": "The course of the run",
}
MOST_SECTIONS = 12
"""Runs that get a section of their own."""


class Section(Struct, frozen=True):
    """One run in detail; of several rounds, the first."""

    name: str
    run: Run
    plots: dict[str, str]
    warnings: list[str]
    notes: list[str]


def write_report(runs: Sequence[Run], *, html: Path | None = None, plots: Path | None = None) -> None:
    """Write a page of these runs to `html`, and their plots as PNGs into the folder `plots`."""
    groups = grouped(runs)
    if plots is not None:
        _write_plots(groups, plots)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(_page(groups, None, _setups(groups)), encoding="utf-8")


def write_comparison(comparison: Comparison, runs: Sequence[Run], html: Path) -> None:
    """Write a page that puts runs side by side, with their plots together."""
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(_page(grouped(runs), comparison, comparison.setups), encoding="utf-8")


def _page(groups: Sequence[Rounds], comparison: Comparison | None, setups: dict[str, dict[str, str]]) -> str:
    environment = Environment(
        loader=PackageLoader("loraplex.bench.results", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_text"] = text
    environment.filters["in_time"] = in_time
    environment.filters["cached_share"] = cached_share
    detailed = groups if len(groups) <= MOST_SECTIONS and not comparison else []
    sections = [
        Section(
            group.name,
            group.runs[0],
            {name: svg(plot) for name, plot in course(group.runs[0]).items()},
            warnings(group.runs[0]) if len(groups) > 1 else [],
            notes(group.runs[0]) if len(groups) > 1 else [],
        )
        for group in detailed
    ]
    first = groups[0].runs[0].configuration
    common = _common(setups)
    setups = {name: {key: value for key, value in each.items() if key not in common} for name, each in setups.items()}
    rates = {key: title for key, title in RATES.items() if any(group.median(key) is not None for group in groups)}
    models = ", ".join(dict.fromkeys(run.configuration.model_id for group in groups for run in group.runs))
    return environment.get_template("report.html.jinja").render(
        title=" / ".join(comparison.sides) if comparison else _title(groups),
        subtitle=" · ".join(filter(None, (models, date(first.date), first.dataset and f"{first.dataset} prompts"))),
        warnings=comparison.warnings if comparison else _warnings(groups, sections=bool(sections)),
        notes=_told(groups[0], notes) if len(groups) == 1 else [],
        comparison=comparison,
        groups=groups,
        rates=rates,
        latencies=LATENCIES,
        columns=[*rates, *(f"{each}_{metric}_ms" for metric in LATENCIES for each in ("median", "p99"))],
        rounds=max(len(group.runs) for group in groups),
        measures=MEASURES,
        most_turns=MOST_TURNS,
        headings=HEADINGS,
        plots={name: svg(plot) for name, plot in overview(groups).items()},
        sections=[
            each
            for each in sections
            if each.plots
            or each.run.cold
            or each.run.probes
            or each.run.turns
            or each.run.server_metrics
            or each.warnings
        ],
        common=common,
        setups=setups,
        setup_keys=list(dict.fromkeys(key for each in setups.values() for key in each)),
    )


def _write_plots(groups: Sequence[Rounds], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = overview(groups)
    if len(groups) <= MOST_SECTIONS:
        for group in groups:
            prefix = f"{_slug(group.name)}-" if len(groups) > 1 else ""
            found |= {f"{prefix}{name}": plot for name, plot in course(group.runs[0]).items()}
    for name, plot in found.items():
        (folder / f"{name}.png").write_bytes(png(plot))


def _title(groups: Sequence[Rounds]) -> str:
    labels = list(dict.fromkeys(group.label for group in groups))
    return " / ".join(labels) if len(labels) <= 3 else f"{labels[0]} and {len(labels) - 1} more"


def _warnings(groups: Sequence[Rounds], *, sections: bool) -> list[str]:
    """What makes the figures doubtful; of several runs, which of them have such a warning in their sections."""
    found = {group.name: _told(group, warnings) for group in groups}
    if len(groups) == 1:
        return found[groups[0].name]
    if not sections:
        return [f"{name}: {warning}" for name, some in found.items() for warning in some]
    doubtful = [name for name, some in found.items() if some]
    return [f"Some figures are doubtful, see the warnings of: {'; '.join(doubtful)}"] if doubtful else []


def _told(group: Rounds, tell: Callable[[Run], list[str]]) -> list[str]:
    """What is to say of its rounds, each thing once."""
    return list(dict.fromkeys(line for run in group.runs for line in tell(run)))


def _setups(groups: Sequence[Rounds]) -> dict[str, dict[str, str]]:
    """What was measured on what, by label."""
    return {group.label: provenance(group.runs[0]) for group in groups}


def _common(setups: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is the same for all."""
    first, *others = setups.values()
    return {key: value for key, value in first.items() if all(each.get(key) == value for each in others)}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
