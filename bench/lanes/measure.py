"""The figures of a run by their key in the JSON file: what they are called, and whether more of it is better."""

from __future__ import annotations

from statistics import median
from typing import Any

from msgspec import Struct

from loraplex.bench.results.document import document
from loraplex.bench.results.result import METRICS, Run


class Measure(Struct, frozen=True):
    """One figure."""

    title: str
    unit: str
    higher: bool
    """Whether the higher is the better."""


_STATISTICS = {
    "mean": "mean",
    "median": "median",
    "p50": "p50",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
    "p99.9": "p99.9",
}
MEASURES: dict[str, Measure] = {
    "output_throughput": Measure("output tokens/s", "", True),
    "steady_output_throughput": Measure("tokens/s in steady state", "", True),
    "total_token_throughput": Measure("total tokens/s", "", True),
    "request_throughput": Measure("requests/s", "", True),
    "request_goodput": Measure("goodput, requests/s", "", True),
    "max_output_tokens_per_s": Measure("output tokens in the best second", "", True),
    **{
        f"{statistic}_{metric}_ms": Measure(f"{metric.upper()} {title}", "ms", False)
        for metric in METRICS
        for statistic, title in _STATISTICS.items()
    },
    "first_turn_ttft_ms": Measure("TTFT median, first turns", "ms", False),
    "later_turns_ttft_ms": Measure("TTFT median, later turns", "ms", False),
    "jain_stream_rate": Measure("fairness of tokens/s", "", True),
    "jain_mean_ttft": Measure("fairness of TTFT", "", True),
    "ttft_spread": Measure("slowest / fastest adapter's TTFT", "", False),
    "churn_load_ms": Measure("loading an adapter during the run", "ms", False),
    "cold_load_ms": Measure("loading an adapter", "ms", False),
    "cold_ttft_ms": Measure("first TTFT after a load", "ms", False),
    "switch_ms": Measure("first use of an adapter", "ms", False),
    "probe_median_e2el_ms": Measure("probe median", "ms", False),
    "probe_p99_e2el_ms": Measure("probe p99", "ms", False),
    "failed": Measure("failed requests", "", False),
}
"""In the order in which they are shown."""
BRIEF = (
    "output_throughput",
    "steady_output_throughput",
    "request_throughput",
    "request_goodput",
    *(f"{statistic}_{metric}_ms" for metric in METRICS for statistic in ("median", "p90", "p99")),
    "first_turn_ttft_ms",
    "later_turns_ttft_ms",
    "jain_stream_rate",
    "ttft_spread",
    "churn_load_ms",
    "cold_load_ms",
    "switch_ms",
    "probe_median_e2el_ms",
    "probe_p99_e2el_ms",
    "failed",
)
"""Those that a table shows unless asked for more."""


def measured(run: Run) -> dict[str, float]:
    """Every figure that the run has, in the order of MEASURES; no latencies where no request succeeded."""
    written = document(run, detailed=False)
    if not run.totals.completed:  # then they are 0, as in vLLM's file
        written = {key: value for key, value in written.items() if not key.endswith("_ms")}
    found: dict[str, Any] = written | written["fairness"] | _turns(run) | _cold(run)
    if run.steady_state is not None:
        found["steady_output_throughput"] = run.steady_state.output_throughput
    return {key: float(found[key]) for key in MEASURES if found.get(key) is not None}


def text(value: float) -> str:
    """Three digits, no exponent; what is over a thousand in full."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def _turns(run: Run) -> dict[str, float]:
    """Of conversations."""
    found = {"first_turn_ttft_ms": run.turns[0] if run.turns else None, "later_turns_ttft_ms": run.later_turns}
    return {key: each.latencies["ttft"].median for key, each in found.items() if each and "ttft" in each.latencies}


def _cold(run: Run) -> dict[str, float]:
    """Medians over the adapters that were loaded anew, during the run and after it."""
    during = [1000 * each.seconds for each in run.churn if not each.error]
    found = {"churn_load_ms": median(during)} if during else {}
    if not run.cold:
        return found
    return found | {
        "cold_load_ms": median(1000 * each.load_seconds for each in run.cold),
        "cold_ttft_ms": median(each.cold_ttft_ms for each in run.cold),
        "switch_ms": median(each.switch_ms for each in run.cold),
    }
