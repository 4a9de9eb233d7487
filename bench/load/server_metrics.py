"""Looks at the server's Prometheus metrics before a run, during it and after it: what explains its latencies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import fmean

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from loraplex.bench.load.target import Target
from loraplex.bench.results.server_metrics import SHARES, Gauge, ServerMetrics

PERIOD_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
GAUGES = {
    "requests_running": (
        *("loraplex_requests_running", "vllm:num_requests_running"),
        *("sglang:num_running_reqs", "llamacpp:requests_processing"),
    ),
    "requests_waiting": (
        *("loraplex_requests_waiting", "vllm:num_requests_waiting"),
        *("sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    ),
    "kv_cache_usage": (
        *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        *("sglang:token_usage", "llamacpp:kv_cache_usage_ratio"),
    ),
}
"""Names that servers have for a thing; the first that is there counts. Ours has the KV cache's under vLLM's name."""
COUNTERS = {
    "preemptions": ("vllm:num_preemptions_total",),
    "prefix_cache_hits": (
        *("loraplex_cached_prompt_tokens_total", "vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    ),
    "prefix_cache_queries": (
        *("loraplex_prompt_tokens_total", "vllm:prefix_cache_queries_total", "sglang:prompt_tokens_total"),
    ),
}
HISTOGRAMS = {
    "queue": ("loraplex_queue_seconds", "vllm:request_queue_time_seconds", "sglang:queue_time_seconds"),
    "ttft": (
        *("loraplex_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
        "sglang:time_to_first_token_seconds",
    ),
}
NAMES = frozenset(name for names in (*GAUGES.values(), *COUNTERS.values()) for name in names) | {
    f"{name}_{part}" for names in HISTOGRAMS.values() for name in names for part in ("sum", "count")
}
PREFIXES = tuple(f"{name}{after}" for name in NAMES for after in "{ ")

FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What a look may raise."""

Look = dict[str, list[float]]
"""Values by name, one for each set of labels."""


@asynccontextmanager
async def watching(target: Target) -> AsyncIterator[Callable[[], ServerMetrics | None]]:
    """Look while the block runs, if the flags ask for it; yields what tells, after the block, what was seen.

    A server that has no metrics fails nothing: then that is told.
    """
    url = target.metrics_url
    if url is None:
        yield lambda: None
        return
    connector = aiohttp.TCPConnector(ssl=not target.insecure)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    looks: list[tuple[float, Look]] = []
    before, after = Look(), Look()
    error = ""
    headers = target.headers if url.startswith(f"{target.url}/") else {}  # keys are for the server, and for nobody else
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, trust_env=True) as session:
        try:
            before = await _look(session, url)
            if not before:
                error = "it has none of the metrics that are known here"
        except FAILURES as failure:
            error = str(failure) or type(failure).__name__
        began = time.perf_counter()
        task = asyncio.create_task(_keep_looking(session, url, began, looks)) if not error else None
        try:
            yield lambda: _seen(url, error, before, after, looks)
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                try:
                    after = await _look(session, url)
                except FAILURES as failure:
                    error = str(failure) or type(failure).__name__


async def _keep_looking(
    session: aiohttp.ClientSession, url: str, began: float, looks: list[tuple[float, Look]]
) -> None:
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        now = time.perf_counter() - began
        try:
            looks.append((now, await _look(session, url)))
        except FAILURES:
            continue  # a busy server may be late once; the last look tells whether it is there


async def _look(session: aiohttp.ClientSession, url: str) -> Look:
    """Raises FAILURES; ValueError for what is not in Prometheus' format."""
    async with session.get(url) as response:
        if response.status != 200:
            raise OSError(f"it answers {response.status}")
        return parsed(await response.text())


def parsed(text: str) -> Look:
    """The lines that count, and no other: a server may have thousands, and the client has latencies to measure."""
    found: Look = {}
    for family in text_string_to_metric_families(
        "".join(f"{line}\n" for line in text.splitlines() if line.startswith(PREFIXES))
    ):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(float(sample.value))
    return found


def _seen(url: str, error: str, before: Look, after: Look, looks: list[tuple[float, Look]]) -> ServerMetrics:
    if error:
        return ServerMetrics(url, error)
    gauges = {}
    for key, names in GAUGES.items():
        whole = max if key in SHARES else sum
        values = [float(whole(value)) for _, look in looks if (value := _of(look, names))]
        if values:
            gauges[key] = Gauge(fmean(values), max(values), values)
    counters = {key: rise for key, names in COUNTERS.items() if (rise := _rise(before, after, names)) is not None}
    means = {}
    for key, histograms in HISTOGRAMS.items():
        seconds = _rise(before, after, [f"{name}_sum" for name in histograms])
        count = _rise(before, after, [f"{name}_count" for name in histograms])
        if seconds is not None and count:
            means[key] = 1000 * seconds / count
    return ServerMetrics(url, "", [at for at, _ in looks], gauges, counters, means)


def _of(look: Look, names: Sequence[str]) -> list[float] | None:
    return next((look[name] for name in names if name in look), None)


def _rise(before: Look, after: Look, names: Sequence[str]) -> float | None:
    """By how much a counter rose; one that is less than before began anew."""
    name = next((name for name in names if name in after), None)
    if name is None:
        return None
    first, last = sum(before.get(name, [])), sum(after[name])
    return last - first if last >= first else last
