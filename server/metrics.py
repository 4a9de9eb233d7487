"""Prometheus metrics by adapter (the base counts as one, under its own name), lane, end and class of key.

Labels come from the registry and the file of keys, never from a request: their number is bounded by what is loaded. The
series of what is gone go with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.registry import Collector

from loraplex.server.histogram import Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_KEY = "none"
"""Class of key on a server without keys."""


class Metrics:
    """One server's metrics in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._labelled: list[Counter | Gauge | Histogram] = []
        self.lane = "none"
        """Which lane serves, once one does."""
        by_key = ("lane", "key_class")
        self.requests = self._counter("requests", "Sequences that ended, by how they ended", "finish_reason", *by_key)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens received", *by_key)
        self.cached_tokens = self._counter("cached_prompt_tokens", "Prompt tokens not computed again", *by_key)
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated", *by_key)
        self.refused = Counter(
            "loraplex_refused_requests", "Requests answered with an error", ["code"], registry=self._registry
        )
        self.running = self._gauge("requests_running", "Sequences that are decoded or prefilled")
        self.waiting = self._gauge("requests_waiting", "Sequences that wait in the queue")
        self.queue = self._histogram("queue_seconds", "From a request's arrival to a slot")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token"
        )
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "From one token to the next")
        self.end_to_end_latency = self._histogram("e2e_request_latency_seconds", "From a request's arrival to its end")
        self.engine_restarts = Counter(
            "loraplex_engine_restarts", "Times the engine process was started again", registry=self._registry
        )

    def add(self, collector: Collector) -> None:
        """Expose what another collector tells at each scrape."""
        self._registry.register(collector)

    def forget(self, adapter: str) -> None:
        """Drop the series of an adapter that is gone."""
        for labelled in self._labelled:
            labelled.remove_by_labels({"adapter": adapter})

    def forget_others(self, adapters: Iterable[str], classes: Iterable[str]) -> None:
        """Drop the series of every adapter and every class of key but these."""
        # Every sequence has a sample in each of these two.
        for metric, label, kept in (
            (self.waiting, "adapter", set(adapters)),
            (self.prompt_tokens, "key_class", {NO_KEY, *classes}),
        ):
            seen = {sample.labels[label] for family in metric.collect() for sample in family.samples}
            for gone in seen - kept:
                for labelled in self._labelled:
                    if label != "key_class" or isinstance(labelled, Counter):
                        labelled.remove_by_labels({label: gone})

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        metric = Counter(f"loraplex_{name}", text, ["adapter", *labels], registry=self._registry)
        self._labelled.append(metric)
        return metric

    def _gauge(self, name: str, text: str) -> Gauge:
        metric = Gauge(f"loraplex_{name}", text, ["adapter"], registry=self._registry)
        self._labelled.append(metric)
        return metric

    def _histogram(self, name: str, text: str) -> Histogram:
        metric = Histogram(f"loraplex_{name}", text, "adapter", SECONDS)
        self._registry.register(metric)
        self._labelled.append(metric)
        return metric
