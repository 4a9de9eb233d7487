"""A run as CSV: a row for each request, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from pathlib import Path

from loraplex.bench.results.result import Run
from loraplex.bench.results.statistics import chunks, tpot

COLUMNS = (
    "model",
    "conversation",
    "turn",
    "start_s",
    "queue_ms",
    "ttft_ms",
    "tpot_ms",
    "itl_mean_ms",
    "itl_max_ms",
    "e2el_ms",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "chunks",
    "finish_reason",
    "error_kind",
    "error",
)


def write(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for each in run.requests:
            itls = each.itls
            rows.writerow(
                (
                    each.model,
                    "" if each.conversation is None else each.conversation,
                    "" if each.conversation is None else each.turn,
                    f"{each.start:.6f}",
                    f"{each.queue * 1000:.3f}",
                    _milliseconds(each.ttft),
                    _milliseconds(tpot(each)),
                    f"{sum(itls) / len(itls) * 1000:.3f}" if itls else "",
                    f"{max(itls) * 1000:.3f}" if itls else "",
                    _milliseconds(each.latency),
                    each.input_tokens,
                    "" if each.cached_tokens is None else each.cached_tokens,
                    each.output_tokens,
                    chunks(each),
                    each.finish_reason or "",
                    each.error_kind or "",
                    each.error,
                )
            )


def _milliseconds(seconds: float) -> str:
    """Nothing for a time that a request does not have, which would draw means down."""
    return f"{seconds * 1000:.3f}" if seconds else ""
