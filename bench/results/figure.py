"""What all plots have in common: an empty figure, its colours and axes, and how it is written.

Made with matplotlib's objects, not by way of pyplot, which keeps figures and asks for a display. Text keeps the default
black, which SVG leaves out, so that a page decides its colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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


def empty_figure(
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


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def load_axis(axes: Any, values: Sequence[float]) -> None:
    """Loads double from step to step: a logarithmic axis that names each of them."""
    ticks = sorted(set(values))
    if ticks[-1] > 4 * ticks[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()


def time_axis(axes: Any, which: Literal["x", "y"]) -> None:
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
