"""vLLM's gauges, under its names, as gateways read them to choose a server and autoscalers to add one.

The endpoint picker of Kubernetes' gateway API inference extension reads these (its docs/proposals/003-model-server-
protocol): how much waits, how much runs, how full the KV cache is, and which adapters are in use, so that requests for
one go where it is. A lane that does not tell of its KV cache has no number here: a made-up one would mislead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loraplex.server.admission import Admission
from loraplex.server.engine.client import EngineClient


class GatewayMetrics(Collector):
    """Tells at each scrape what stands then."""

    def __init__(self, engine: EngineClient, admission: Admission, base: str) -> None:
        self._engine = engine
        self._admission = admission
        self._base = base

    def collect(self) -> Iterator[Metric]:
        waiting, running = self._admission.waiting, self._admission.running
        for name, text, counts in (
            ("vllm:num_requests_waiting", "Sequences that wait in the queue", waiting),
            ("vllm:num_requests_running", "Sequences that are decoded or prefilled", running),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name", "engine"])
            family.add_metric([self._base, "0"], counts.total())
            yield family
        yield from self._kv_cache()
        adapters = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of the sequences that run and wait; the value is the time of this, in Unix seconds",
            labels=["running_lora_adapters", "waiting_lora_adapters", "max_lora"],
        )
        names = [",".join(sorted(counts.keys() - {self._base})) for counts in (running, waiting)]
        # Where each adapter has a place of its own, one sequence of each can run.
        most = self._engine.places or self._admission.max_running
        adapters.add_metric([*names, str(most)], time.time())
        yield adapters

    def _kv_cache(self) -> Iterator[Metric]:
        usage, started = self._engine.kv_usage, self._engine.started
        if usage is None or started is None:
            return
        for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):  # the second is what it was called once
            family = GaugeMetricFamily(name, "Share of the KV cache in use, 0 to 1", labels=["model_name", "engine"])
            family.add_metric([self._base, "0"], usage)
            yield family
        # Blocks of one token: room is given out by the token.
        size = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache's size", labels=["block_size", "num_gpu_blocks"]
        )
        size.add_metric(["1", str(started.kv_tokens)], 1)
        yield size
