"""Runs with known figures, made of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraplex.bench.load.benchmark import reckon
from loraplex.bench.load.driver import Measured
from loraplex.bench.load.options import Report
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import ClientCost, Request, Run


def make_run(
    label: str | None = None,
    *,
    speed: float = 1.0,
    models: Sequence[str] = ("travel", "tone"),
    requests: int = 4,
    prompt: int = 16,
    failed: int = 0,
    **asked: Any,
) -> Run:
    """Requests one after another over the models: TTFT 100 ms and ten tokens, 20 ms apart, all divided by `speed`."""
    made, clock = [], 0.0
    for index in range(requests):
        intervals = [0.02 / speed] * 9
        latency = 0.1 / speed + sum(intervals)
        request = Request(
            model=models[index % len(models)],
            start=clock,
            ttft=0.1 / speed,
            itls=intervals,
            latency=latency,
            input_tokens=prompt,
            output_tokens=10,
            usage_tokens=10,
        )
        if index < failed:
            request.error, request.error_kind = "no", "http_429:queue_full"
        made.append(request)
        clock += latency
    told: dict[str, Any] = {
        "date": "20261121-101112",
        "model_id": "plex",
        "num_prompts": requests,
        "command": "loraplex bench serve --label <b>",
        "server": {"lane": "batched", "onnxruntime": "1.31.1"},
        "machine": {"processor": "AMD EPYC"},
        "dataset": "random",
    }
    configuration = Configuration(label=label, **(told | asked))
    return reckon(configuration, Measured(made, clock, ClientCost(0.1, clock, 40), []), Report())
