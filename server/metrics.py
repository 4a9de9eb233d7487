"""Prometheus metrics, each labelled by adapter (the base counts as one, under its own name).

Labels come from the registry, never from a request: their number is bounded by the adapters that are loaded.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One server's metrics in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Sequences that ended, by how they ended", "finish_reason")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens received")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self.refused = Counter(
            "loraplex_refused_requests", "Requests answered with an error", ["code"], registry=self._registry
        )
        self.running = self._gauge("requests_running", "Sequences that are decoded or prefilled")
        self.waiting = self._gauge("requests_waiting", "Sequences that wait in the queue")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token"
        )
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "From one token to the next")
        self.end_to_end_latency = self._histogram("e2e_request_latency_seconds", "From a request's arrival to its end")
        self.engine_restarts = Counter(
            "loraplex_engine_restarts", "Times the engine process was started again", registry=self._registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"loraplex_{name}", text, ["adapter", *labels], registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"loraplex_{name}", text, ["adapter"], registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"loraplex_{name}", text, ["adapter"], buckets=SECONDS, registry=self._registry)
