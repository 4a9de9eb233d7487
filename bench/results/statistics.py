"""From requests to numbers. Definitions are vLLM's (`calculate_metrics` in vllm/benchmarks/serve.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from loraplex.bench.results.result import (
    Conversations,
    Distribution,
    Fairness,
    Metric,
    Request,
    Series,
    Summary,
    Timeline,
    TokenCheck,
)

INTERVALS = (0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
"""Widths of a timeline's intervals, in seconds: the first that gives at most `MOST_INTERVALS`."""
MOST_INTERVALS = 240


def summarize(
    requests: Sequence[Request],
    duration: float,
    *,
    metrics: Iterable[Metric],
    percentiles: Sequence[float],
    objectives: Mapping[str, float],
) -> Summary:
    """Counts, rates over `duration` seconds and distributions.

    `objectives` are milliseconds by metric, or by MODEL:METRIC, which for that model takes the metric's place.
    """
    good = [each for each in requests if each.error_kind is None]
    limits = {model: _limits(objectives, model) for model in {each.model for each in good}}
    inputs = sum(each.input_tokens for each in good)
    outputs = sum(each.output_tokens for each in good)
    within = sum(_within(each, limits[each.model]) for each in good)
    cached = [each.cached_tokens for each in good if each.cached_tokens is not None]
    return Summary(
        completed=len(good),
        failed=len(requests) - len(good),
        total_input_tokens=inputs,
        total_output_tokens=outputs,
        request_throughput=len(good) / duration,
        request_goodput=within / duration if objectives else None,
        output_throughput=outputs / duration,
        total_token_throughput=(inputs + outputs) / duration,
        max_output_tokens_per_s=_fullest_second(good),
        max_concurrent_requests=_peak(good),
        latencies={metric: distribution(samples(metric, good), percentiles) for metric in metrics},
        errors_by_kind=dict(Counter(each.error_kind for each in requests if each.error_kind is not None)),
        total_cached_tokens=sum(cached) if cached else None,
    )


def summarize_conversations(requests: Sequence[Request], planned: Sequence[int]) -> Conversations:
    """`planned` has the turns of each conversation."""
    talks: dict[int, list[Request]] = {}
    for each in requests:
        if each.conversation is not None:
            talks.setdefault(each.conversation, []).append(each)
    failed = given_up = 0
    durations = []
    for index, talk in talks.items():
        last = max(talk, key=lambda each: each.turn)
        if last.error_kind is not None:
            failed += 1
            given_up += planned[index] - last.turn
        elif last.turn == planned[index]:
            durations.append(last.start + last.latency - min(each.start for each in talk))
    return Conversations(
        num_conversations=len(planned),
        conversations_completed=len(durations),
        conversations_failed=failed,
        turns_given_up=given_up,
        avg_turns_completed=sum(each.error_kind is None for each in requests) / max(1, len(talks)),
        avg_conversation_duration_ms=1000 * sum(durations) / max(1, len(durations)),
    )


def samples(metric: Metric, requests: Sequence[Request]) -> list[float]:
    """Seconds: one of each request, but every interval for `itl`, and for `tpot` none of an answer of one token."""
    match metric:
        case "ttft":
            return [each.ttft for each in requests]
        case "tpot":
            return [tpot(each) for each in requests if each.output_tokens > 1]
        case "itl":
            return [interval for each in requests for interval in each.itls]
        case "e2el":
            return [each.latency for each in requests]
        case "client_queue_time":
            return [each.queue for each in requests]
        case "e2el_including_client_queue":
            return [each.latency + each.queue for each in requests]


def tpot(request: Request) -> float:
    """Seconds per output token after the first; 0 of an answer of one token."""
    return (request.latency - request.ttft) / (request.output_tokens - 1) if request.output_tokens > 1 else 0.0


def distribution(seconds: Sequence[float], percentiles: Sequence[float]) -> Distribution:
    """Percentiles are interpolated between samples, as numpy does by default."""
    values = np.array(seconds or [0.0]) * 1000
    return Distribution(
        float(values.mean()),
        float(np.median(values)),
        float(values.std()),
        {f"{each:g}": float(np.percentile(values, each)) for each in percentiles},
    )


def fairness(requests: Sequence[Request]) -> Fairness:
    """Over the models that were asked; one that got no token has a rate of 0, and no TTFT."""
    of_model: dict[str, list[Request]] = {each.model: [] for each in requests}
    for each in requests:
        if each.error_kind is None and each.output_tokens and each.latency > 0:
            of_model[each.model].append(each)
    served = [found for found in of_model.values() if found]
    if len(of_model) < 2 or not served:
        return Fairness()
    rates = [sum(each.output_tokens for each in found) / sum(each.latency for each in found) for found in served]
    rates += [0.0] * (len(of_model) - len(served))
    if len(served) < 2:
        return Fairness(jain(rates))
    first = [sum(each.ttft for each in found) / len(found) for found in served]
    return Fairness(jain(rates), jain(first), max(first) / min(first) if min(first) > 0 else None)


def jain(values: Sequence[float]) -> float:
    """(sum x)^2 / (n * sum x^2)."""
    return math.fsum(values) ** 2 / (len(values) * math.fsum(each * each for each in values))


def check_tokens(requests: Sequence[Request]) -> TokenCheck:
    """Usage beside chunks. The token that ends an answer is counted and has no text, so it may lack a chunk."""
    good = [each for each in requests if each.error_kind is None]
    fewer = more = 0
    for each in good:
        if each.usage_tokens is None:
            continue
        hidden = 1 if each.finish_reason == "stop" else 0
        fewer += chunks(each) < each.usage_tokens - hidden
        more += chunks(each) > each.usage_tokens
    return TokenCheck(
        sum(each.usage_tokens or 0 for each in good),
        sum(chunks(each) for each in good),
        sum(each.usage_tokens is None for each in good),
        fewer,
        more,
    )


def chunks(request: Request) -> int:
    """Chunks with tokens."""
    return len(request.itls) + 1 if request.itls or request.text or request.ttft < request.latency else 0


def timeline(requests: Sequence[Request], duration: float) -> Timeline:
    """Every model over the run."""
    width = next((each for each in INTERVALS if duration / each <= MOST_INTERVALS), INTERVALS[-1])
    count = max(1, math.ceil(duration / width))
    of_model: dict[str, list[Request]] = {}
    for each in requests:
        of_model.setdefault(each.model, []).append(each)
    return Timeline(width, {model: _series(found, width, count) for model, found in sorted(of_model.items())})


def _series(requests: Sequence[Request], width: float, count: int) -> Series:
    tokens, running = np.zeros(count), np.zeros(count)
    started, failed = np.zeros(count), np.zeros(count)
    first: list[list[float]] = [[] for _ in range(count)]
    edges = np.arange(count + 1) * width
    for each in requests:
        place = min(count - 1, int(each.start / width))
        started[place] += 1
        failed[min(count - 1, int((each.start + each.latency) / width))] += each.error_kind is not None
        inside = np.minimum(edges[1:], each.start + each.latency) - np.maximum(edges[:-1], each.start)
        running += np.maximum(0, inside) / width
        if each.ttft:
            first[min(count - 1, int((each.start + each.ttft) / width))].append(each.ttft)
            np.add.at(tokens, np.minimum(count - 1, (token_times(each) / width).astype(int)), 1)
    return Series(
        tokens.astype(int).tolist(),
        [round(float(each), 4) for each in running],
        started.astype(int).tolist(),
        failed.astype(int).tolist(),
        [1000 * sum(found) / len(found) if found else None for found in first],
    )


def token_times(request: Request) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """When its chunks came, in seconds from the beginning of the run; shape [chunks]."""
    if not chunks(request):
        return np.empty(0)
    return request.start + request.ttft + np.cumsum([0.0, *request.itls])


def _limits(objectives: Mapping[str, float], model: str) -> dict[str, float]:
    """Those of all models, and in their place the model's own; by metric."""
    found = {}
    for owner in ("", model):
        for key, limit in objectives.items():
            name, _, metric = key.rpartition(":")
            if name == owner:
                found[metric] = limit
    return found


def _within(request: Request, objectives: Mapping[str, float]) -> bool:
    found = {"ttft": request.ttft, "tpot": tpot(request), "e2el": request.latency}
    return all(found[metric] * 1000 <= limit for metric, limit in objectives.items())


def _fullest_second(requests: Sequence[Request]) -> float:
    """Seconds are counted from the first request that succeeded."""
    if not requests:
        return 0.0
    begin = min(each.start for each in requests)
    places = np.concatenate([token_times(each) - begin for each in requests]).astype(int)
    return float(np.bincount(places).max()) if places.size else 0.0


def _peak(requests: Sequence[Request]) -> int:
    """Most requests under way at once; one that ends when another begins does not overlap with it."""
    events = sorted([(each.start, 1) for each in requests] + [(each.start + each.latency, -1) for each in requests])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most
