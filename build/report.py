"""verification.html: one page that says what was built, whether it is right, how good it is and what it cost.

Everything is in the one file, plots included, so that it can be sent around.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from loraplex.build.findings import Perplexity, Verification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "verification.html"
_WEIGHTS = ("float", "awq", "k_quant", "rtn", "as served")
"""Order of the columns."""
_COLOURS = {"float": "#8c8c8c", "awq": "#3b6ea5", "k_quant": "#3b6ea5", "rtn": "#c78b3c", "as served": "#1b9e77"}


def write_report(folder: Path, verification: Verification) -> None:
    """Write verification.html into `folder`."""
    environment = Environment(
        loader=PackageLoader("loraplex.build", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "seconds": _seconds, "small": _small}
    rows = verification.perplexities
    page = environment.get_template("report.html.jinja").render(
        found=verification,
        weights=[each for each in _WEIGHTS if any(row.weights == each for row in rows)],
        perplexities=_grouped(rows),
        plots={
            "perplexity": _svg(_plot_perplexities(rows)) if rows else None,
            "steps": _svg(_plot_steps(verification)),
        },
    )
    (folder / PAGE).write_text(page, encoding="utf-8")


def _grouped(rows: Sequence[Perplexity]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Values by weights, of each text and model and its number of tokens."""
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row.text, row.model, row.tokens), {})[row.weights] = row.value
    return found


def _plot_perplexities(rows: Sequence[Perplexity]) -> Figure:
    """Bars by text: each text read by the model that it is held out for."""
    grouped = {text: values for (text, model, _), values in _grouped(rows).items() if model == text or text == "base"}
    weights = [each for each in _WEIGHTS if any(each in values for values in grouped.values())]
    figure, axes = _figure(1.2 + 0.35 * len(grouped) * len(weights) / 2)
    height = 0.8 / len(weights)
    for index, each in enumerate(weights):
        places = [row + (index - (len(weights) - 1) / 2) * height for row in range(len(grouped))]
        bars = axes.barh(
            places,
            [values.get(each, 0.0) for values in grouped.values()],
            height * 0.9,
            label=each,
            color=_COLOURS[each],
        )
        axes.bar_label(bars, fmt=lambda value: f"{value:.3g}" if value else "", padding=3, fontsize=8)
    axes.set_yticks(range(len(grouped)), list(grouped))
    axes.invert_yaxis()
    axes.set_xlabel("perplexity on held-out text, lower is better")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _plot_steps(verification: Verification) -> Figure:
    steps = verification.steps
    figure, axes = _figure(0.9 + 0.28 * len(steps))
    bars = axes.barh(range(len(steps)), [step.seconds for step in steps], color=_COLOURS["awq"])
    axes.bar_label(
        bars,
        [f"{_seconds(step.seconds)}, peak {_bytes(step.peak_bytes)}" for step in steps],
        padding=3,
        fontsize=8,
    )
    axes.set_yticks(range(len(steps)), [step.name for step in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max((step.seconds for step in steps), default=1) or 1)
    axes.set_xlabel("seconds")
    return figure


def _figure(height: float) -> tuple[Figure, Any]:
    """An empty plot, 7.5 inches wide. Not by way of pyplot, which keeps figures and asks for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, max(1.6, height)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The plot as an svg element."""
    from matplotlib import rc_context

    stream = io.StringIO()
    # Text stays text, which can be searched and takes the page's font; ids are the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "loraplex", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"
