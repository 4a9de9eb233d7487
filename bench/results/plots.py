"""The plots of a report: latencies and throughput over load, and of one run its adapters, its course, its spread.

Made with matplotlib's objects, not by way of pyplot, which keeps figures and asks for a display. Text keeps the default
black, which SVG leaves out, so that a page decides its colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from loraplex.bench.lanes.measure import text
from loraplex.bench.results import statistics
from loraplex.bench.results.result import ChurnLoad, Metric, Run, Series, Timeline
from loraplex.bench.rounds import Rounds

COLOURS = (
    "#3f7cbf",
    "#c98a35",
    "#1b9e77",
    "#b8527f",
    "#7d70bd",
    "#5fa8c9",
    "#a8a23c",
    "#c9604d",
    "#4f9d5d",
    "#8c8c8c",
)
GREY = "#8c8c8c"
PERCENTILES = ("median", "p90", "p99")
STYLES = {"median": "-", "p90": "--", "p99": ":"}
MOST_CURVES = 8
MOST_ADAPTERS = 9
"""Adapters with a colour of their own in a timeline; the others share one."""


def overview(groups: Sequence[Rounds]) -> dict[str, Figure]:
    """What several loads show together, by name; nothing of a single one but its spread."""
    found = {}
    if figure := _latency_over_rate(groups):
        found["latency-over-rate"] = figure
    if figure := _over_concurrency(groups):
        found["throughput-over-concurrency"] = figure
    if figure := _distributions(groups):
        found["distributions"] = figure
    return found


def course(run: Run) -> dict[str, Figure]:
    """What one run shows, by name."""
    found = {}
    if len(run.adapters) > 1:
        found["adapters"] = _adapters(run)
    # An instant has no course.
    if any(len(series.running) > 3 for series in run.timeline.adapters.values()):
        found["timeline"] = _timeline(run.timeline, run.churn)
    return found


def svg(figure: Figure) -> str:
    """The plot as an svg element; its text stays text."""
    stream = io.StringIO()
    # Ids are the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "loraplex", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    found = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.DOTALL)
    return found[found.index("<svg") :]


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor="white")
    return stream.getvalue()


def _latency_over_rate(groups: Sequence[Rounds]) -> Figure | None:
    """Percentiles of latencies, by requests a second that were asked for."""
    rated = [group for group in groups if math.isfinite(group.runs[0].configuration.request_rate)]
    if len({group.runs[0].configuration.request_rate for group in rated}) < 2:
        return None
    return _latencies(rated, lambda run: run.configuration.request_rate, "requests/s asked for")


def _over_concurrency(groups: Sequence[Rounds]) -> Figure | None:
    """Output tokens/s by label, and the median latencies beside it."""
    levels = [group for group in groups if group.runs[0].configuration.max_concurrency is not None]
    if len({group.runs[0].configuration.max_concurrency for group in levels}) < 2:
        return None
    figure, (speed, first, between) = _figure(4.4, columns=3, wide=11)
    for key, title, axes in (
        ("output_throughput", "output tokens/s", speed),
        ("median_ttft_ms", "TTFT, median, ms", first),
        ("median_tpot_ms", "TPOT, median, ms", between),
    ):
        for index, (label, some) in enumerate(_by_label(levels).items()):
            points = sorted(
                (group.runs[0].configuration.max_concurrency or 0, value)
                for group in some
                if (value := group.median(key)) is not None
            )
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=label, color=_colour(index))
        _load_axis(axes, [group.runs[0].configuration.max_concurrency or 0 for group in levels])
        axes.set_xlabel("requests at once", fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(0, axes.dataLim.y1 * 1.08 or 1)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    return figure


def _latencies(groups: Sequence[Rounds], x: Callable[[Run], float], what: str) -> Figure:
    metrics: tuple[Metric, ...] = ("ttft", "tpot", "itl")
    figure, places = _figure(4.2, columns=3, wide=11)
    for metric, axes in zip(metrics, places, strict=True):
        for index, (label, some) in enumerate(_by_label(groups).items()):
            for percentile in PERCENTILES:
                points = sorted(
                    (x(group.runs[0]), value)
                    for group in some
                    if (value := group.median(f"{percentile}_{metric}_ms")) is not None
                )
                if points:
                    name = f"{label}, {percentile}" if len(_by_label(groups)) > 1 else percentile
                    style = f"o{STYLES[percentile]}"
                    colour = _colour(index)
                    axes.plot(*zip(*points, strict=True), style, markersize=3.5, label=name, color=colour)
        _load_axis(axes, [x(group.runs[0]) for group in groups])
        _time_axis(axes, "y")
        axes.set_xlabel(what, fontsize=8)
        axes.set_title(f"{metric.upper()}, ms", fontsize=10, loc="left")
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    return figure


def _distributions(groups: Sequence[Rounds]) -> Figure | None:
    """Of each group, the share of TTFTs and of ITLs that are at most so long."""
    metrics: tuple[Metric, ...] = ("ttft", "itl")
    shown = [group for group in groups if any(run.requests for run in group.runs)]
    if not shown or len(shown) > MOST_CURVES:
        return None
    figure, places = _figure(4.2, columns=2, wide=9)
    for metric, axes in zip(metrics, places, strict=True):
        for index, group in enumerate(shown):
            good = [each for run in group.runs for each in run.requests if each.error_kind is None]
            values = np.sort(np.array(statistics.samples(metric, good)) * 1000)
            if len(values):
                shares = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, shares, where="post", color=_colour(index), label=group.name)
        _time_axis(axes, "x")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("ms", fontsize=8)
        axes.set_title(f"{metric.upper()}: share that is at most so long", fontsize=10, loc="left")
    if len(shown) > 1:
        handles = places[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    return figure


def _adapters(run: Run) -> Figure:
    """Bars: what each adapter got."""
    names = list(run.adapters)
    figure, places = _figure(1.1 + 0.42 * len(names), columns=3, wide=11)
    rates = [run.adapters[name].output_throughput for name in names]
    places[0].barh(range(len(names)), rates, color=COLOURS[0])
    places[0].bar_label(places[0].containers[0], [text(rate) for rate in rates], padding=3, fontsize=8)
    places[0].set_title("output tokens/s", fontsize=10, loc="left")
    metrics: tuple[Metric, ...] = ("ttft", "tpot")
    for axes, metric in zip(places[1:], metrics, strict=True):
        for index, percentile in enumerate(("median", "p99")):
            values = []
            for name in names:
                found = run.adapters[name].latencies.get(metric)
                values.append(0.0 if not found else found.percentiles.get("99", 0.0) if index else found.median)
            places_ = [row + (index - 0.5) * 0.4 for row in range(len(names))]
            bars = axes.barh(places_, values, 0.36, color=COLOURS[index], label=percentile)
            axes.bar_label(bars, [text(value) for value in values], padding=3, fontsize=8)
        axes.set_title(f"{metric.upper()}, ms", fontsize=10, loc="left")
    handles = places[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    for axes in places:
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=GREY, alpha=0.2, linewidth=0.7)
        axes.set_yticks(range(len(names)), names if axes is places[0] else [""] * len(names))
        axes.invert_yaxis()
        axes.margins(x=0.22)
    return figure


def _timeline(timeline: Timeline, churn: Sequence[ChurnLoad]) -> Figure:
    """Tokens/s stacked by adapter, requests under way, and TTFTs, over the seconds of the run; lines where adapters
    were loaded."""
    series = _few(timeline.adapters)
    width = timeline.interval
    count = max(len(each.running) for each in series.values())
    edges = np.arange(count + 1) * width
    times = edges[:-1] + width / 2
    figure, (speed, running, first) = _figure(6.4, rows=3, wide=9, ratios=(2, 1, 1.4))
    below = np.zeros(count)
    for index, (name, each) in enumerate(series.items()):
        above = below + np.array(each.output_tokens) / width
        speed.stairs(above, edges, baseline=below, fill=True, color=_colour(index), label=name)
        below = above
    speed.set_title("output tokens/s" + ("; dotted: an adapter is loaded" if churn else ""), fontsize=10, loc="left")
    under_way = np.sum([each.running for each in series.values()], axis=0)
    running.stairs(under_way, edges, baseline=None, color=GREY)
    running.yaxis.get_major_locator().set_params(integer=True)
    running.set_title("requests under way", fontsize=10, loc="left")
    for index, each in enumerate(series.values()):
        first.plot(times, [math.nan if value is None else value for value in each.mean_ttft_ms], "o", markersize=3)
        first.lines[-1].set_color(_colour(index))
        if any(each.failed):
            places = [time for time, failed in zip(times, each.failed, strict=True) if failed]
            running.plot(places, [0] * len(places), "x", color=COLOURS[7], markersize=5)
    _time_axis(first, "y")
    first.set_title("TTFT, ms, mean of the first tokens that came in the interval", fontsize=10, loc="left")
    first.set_xlabel("seconds", fontsize=8)
    for axes in (speed, running, first):
        for load in churn:
            colour = _colour(list(series).index(load.adapter)) if load.adapter in series else GREY
            axes.axvline(load.start, color=colour, linestyle=":", linewidth=1.2)
        axes.set_xlim(0, count * width)
        if axes is not first:
            axes.set_ylim(bottom=0)
            axes.set_xticklabels([])
    handles, labels = speed.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8, ncols=5)
    return figure


def _few(adapters: dict[str, Series]) -> dict[str, Series]:
    """The busiest as they are, and the rest together."""
    if len(adapters) <= MOST_ADAPTERS + 1:
        return adapters
    busiest = sorted(adapters, key=lambda name: -sum(adapters[name].output_tokens))
    rest = [adapters[name] for name in busiest[MOST_ADAPTERS:]]
    together = Series(
        [sum(values) for values in zip(*(each.output_tokens for each in rest), strict=True)],
        [sum(values) for values in zip(*(each.running for each in rest), strict=True)],
        [sum(values) for values in zip(*(each.started for each in rest), strict=True)],
        [sum(values) for values in zip(*(each.failed for each in rest), strict=True)],
        [_mean(values) for values in zip(*(each.mean_ttft_ms for each in rest), strict=True)],
    )
    return {name: adapters[name] for name in busiest[:MOST_ADAPTERS]} | {f"{len(rest)} others": together}


def _mean(values: Sequence[float | None]) -> float | None:
    some = [value for value in values if value is not None]
    return sum(some) / len(some) if some else None


def _by_label(groups: Sequence[Rounds]) -> dict[str, list[Rounds]]:
    found: dict[str, list[Rounds]] = {}
    for group in groups:
        found.setdefault(group.label, []).append(group)
    return found


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _load_axis(axes: Any, values: Sequence[float]) -> None:
    """Loads double from step to step: a logarithmic axis that names each of them."""
    ticks = sorted(set(values))
    if ticks[-1] > 4 * ticks[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()


def _time_axis(axes: Any, which: Literal["x", "y"]) -> None:
    """Milliseconds over several orders of magnitude, without exponents."""
    least = axes.dataLim.minposx if which == "x" else axes.dataLim.minposy
    if not math.isfinite(least):  # all are zero, as where every answer came in one piece
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    named = "25" if high > 10 * low else "2345678"
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else ""))
    axis.set_tick_params(which="minor", labelsize=7)


def _figure(
    height: float, *, rows: int = 1, columns: int = 1, wide: float, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """An empty plot, in inches."""
    figure = Figure(figsize=(wide, max(1.8, height)), layout="constrained")
    places = figure.subplots(rows, columns, height_ratios=ratios)
    for axes in np.ravel(places):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(which="both", color=GREY, labelsize=8)
        axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, places
