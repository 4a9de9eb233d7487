"""What the server's own metrics said of a run."""

from __future__ import annotations

from msgspec import Struct

GAUGES = {
    "requests_running": "Requests running, mean (most):",
    "requests_waiting": "Requests waiting, mean (most):",
    "kv_cache_usage": "KV cache used, mean (most):",
}
SHARES = ("kv_cache_usage",)
"""Gauges from 0 to 1."""
MEANS = {"queue": "Time in the queue, mean (ms):", "ttft": "TTFT by the server, mean (ms):"}


class Gauge(Struct, frozen=True):
    """A figure that goes up and down."""

    mean: float
    max: float
    values: list[float]
    """One of each time, or of those at which the server had it."""


class ServerMetrics(Struct, frozen=True):
    """Of all requests that the server had from the beginning of the run to its end, whoever sent them."""

    url: str
    error: str = ""
    """Why there are none."""
    times: list[float] = []
    """Seconds from the beginning of the run at which gauges were looked at."""
    gauges: dict[str, Gauge] = {}
    """Keys of GAUGES, as far as the server has them and there was time to look."""
    counters: dict[str, float] = {}
    """By how much they rose: `preemptions`, `prefix_cache_hits` and `prefix_cache_queries`, both in tokens."""
    means_ms: dict[str, float] = {}
    """Keys of MEANS, over the requests of the run."""

    def figures(self) -> dict[str, str]:
        """For readers."""
        found = {}
        for key, title in GAUGES.items():
            if gauge := self.gauges.get(key):
                shares = f"{gauge.mean:.1%} ({gauge.max:.1%})"
                found[title] = shares if key in SHARES else f"{gauge.mean:.1f} ({gauge.max:.0f})"
        if "preemptions" in self.counters:
            found["Preemptions:"] = f"{self.counters['preemptions']:.0f}"
        hits, queries = self.counters.get("prefix_cache_hits"), self.counters.get("prefix_cache_queries")
        if hits is not None and queries:
            found["Prefix cache hits (tokens):"] = f"{hits:.0f} of {queries:.0f} ({hits / queries:.0%})"
        return found | {title: f"{self.means_ms[key]:.2f}" for key, title in MEANS.items() if key in self.means_ms}
