"""Plots of several loads together: latencies over the rate, throughput over concurrency, distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from loraplex.bench.results import statistics
from loraplex.bench.results.figure import colour, empty_figure, load_axis, time_axis
from loraplex.bench.results.result import Metric, Run
from loraplex.bench.rounds import Rounds

PERCENTILES = ("median", "p90", "p99")
STYLES = {"median": "-", "p90": "--", "p99": ":"}
MOST_CURVES = 8


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
    figure, (speed, first, between) = empty_figure(4.4, columns=3, wide=11)
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
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=label, color=colour(index))
        load_axis(axes, [group.runs[0].configuration.max_concurrency or 0 for group in levels])
        axes.set_xlabel("requests at once", fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(0, axes.dataLim.y1 * 1.08 or 1)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    return figure


def _latencies(groups: Sequence[Rounds], x: Callable[[Run], float], what: str) -> Figure:
    metrics: tuple[Metric, ...] = ("ttft", "tpot", "itl")
    figure, places = empty_figure(4.2, columns=3, wide=11)
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
                    shade = colour(index)
                    axes.plot(*zip(*points, strict=True), style, markersize=3.5, label=name, color=shade)
        load_axis(axes, [x(group.runs[0]) for group in groups])
        time_axis(axes, "y")
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
    figure, places = empty_figure(4.2, columns=2, wide=9)
    for metric, axes in zip(metrics, places, strict=True):
        for index, group in enumerate(shown):
            good = [each for run in group.runs for each in run.requests if each.error_kind is None]
            values = np.sort(np.array(statistics.samples(metric, good)) * 1000)
            if len(values):
                shares = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, shares, where="post", color=colour(index), label=group.name)
        time_axis(axes, "x")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("ms", fontsize=8)
        axes.set_title(f"{metric.upper()}: share that is at most so long", fontsize=10, loc="left")
    if len(shown) > 1:
        handles = places[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    return figure


def _by_label(groups: Sequence[Rounds]) -> dict[str, list[Rounds]]:
    found: dict[str, list[Rounds]] = {}
    for group in groups:
        found.setdefault(group.label, []).append(group)
    return found
