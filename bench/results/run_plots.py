"""Plots of one run: what its adapters got, and its course."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from loraplex.bench.lanes.measure import text
from loraplex.bench.results.figure import COLOURS, GREY, colour, empty_figure, time_axis
from loraplex.bench.results.result import ChurnLoad, Metric, Run, Series, Timeline

MOST_ADAPTERS = 9
"""Adapters with a colour of their own in a timeline; the others share one."""


def course(run: Run) -> dict[str, Figure]:
    """What one run shows, by name."""
    found = {}
    if len(run.adapters) > 1:
        found["adapters"] = _adapters(run)
    # An instant has no course.
    if any(len(series.running) > 3 for series in run.timeline.adapters.values()):
        found["timeline"] = _timeline(run.timeline, run.churn)
    return found


def _adapters(run: Run) -> Figure:
    """Bars: what each adapter got."""
    names = list(run.adapters)
    figure, places = empty_figure(1.1 + 0.42 * len(names), columns=3, wide=11)
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
            # Shades of one colour: those of the timeline mean adapters.
            bars = axes.barh(places_, values, 0.36, color=COLOURS[0], alpha=1 - 0.5 * index, label=percentile)
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
    figure, (speed, running, first) = empty_figure(6.4, rows=3, wide=9, ratios=(2, 1, 1.4))
    below = np.zeros(count)
    for index, (name, each) in enumerate(series.items()):
        above = below + np.array(each.output_tokens) / width
        speed.stairs(above, edges, baseline=below, fill=True, color=colour(index), label=name)
        below = above
    speed.set_title("output tokens/s" + ("; dotted: an adapter is loaded" if churn else ""), fontsize=10, loc="left")
    under_way = np.sum([each.running for each in series.values()], axis=0)
    running.stairs(under_way, edges, baseline=None, color=GREY)
    running.set_ylim(0, 1.1 * max(float(under_way.max()), 1.0))
    running.yaxis.get_major_locator().set_params(integer=True)
    marks = "; crosses: some failed" if any(any(each.failed) for each in series.values()) else ""
    running.set_title(f"requests under way{marks}", fontsize=10, loc="left")
    for index, each in enumerate(series.values()):
        first.plot(times, [math.nan if value is None else value for value in each.mean_ttft_ms], "o", markersize=3)
        first.lines[-1].set_color(colour(index))
        if any(each.failed):
            places = [time for time, failed in zip(times, each.failed, strict=True) if failed]
            running.plot(places, [0] * len(places), "x", color=COLOURS[7], markersize=5)
    time_axis(first, "y")
    first.set_title("TTFT, ms, mean of the first tokens that came in the interval", fontsize=10, loc="left")
    first.set_xlabel("seconds", fontsize=8)
    for axes in (speed, running, first):
        for load in churn:
            shade = colour(list(series).index(load.adapter)) if load.adapter in series else GREY
            axes.axvline(load.start, color=shade, linestyle=":", linewidth=1.2)
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
