"""The part of a run in which as many requests were under way as should be, without the drain at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import Request, SteadyState
from loraplex.bench.results.statistics import token_times

SHARE_OF_PEAK = 0.9
SHORTEST_SECONDS = 1.0
TRACES = ("trace", "timed_trace")


def steady_state(requests: Sequence[Request], asked: Configuration) -> SteadyState | None:
    """The longest time without a break in which at least `asked.max_concurrency` requests were under way; where none is
    set and all were sent at once, at least 90 % of the most that ever were. None where that is less than a second. Of a
    run of conversations it is those that count, their pauses included, and `asked.multi_turn_concurrency`.

    A request is under way from when it could be sent, so its time in the client's queue counts: a place that one
    request leaves and the next takes is not idle, however long the client needs for that. The prompts that come all at
    once at the beginning are in it, as each place's first answer is from its beginning; what is left out is the end,
    when places are empty. At a rate, or in a trace, without a limit there is none: how many are under way is then up to
    chance, and the longest time with many is the luckiest.

    Tokens count when their chunk came, a chunk as the request's tokens divided by its chunks, and requests when they
    ended: after the window's begin, up to its end.
    """
    if not requests:
        return None
    spans: dict[tuple[int | None, int], tuple[float, float]] = {}
    for index, each in enumerate(requests):
        key = (each.conversation, index if each.conversation is None else 0)
        begin, end = each.start - each.queue, each.start + each.latency
        before = spans.get(key, (begin, end))
        spans[key] = min(begin, before[0]), max(end, before[1])
    events = np.concatenate(list(zip(*spans.values(), strict=True)))
    # What ends at the moment at which another begins makes no break and no peak.
    times, places = np.unique(events, return_inverse=True)
    running = np.cumsum(np.bincount(places, weights=np.repeat([1, -1], len(spans))))
    if (limit := asked.multi_turn_concurrency if asked.multi_turn else asked.max_concurrency) is not None:
        level = limit
    elif math.isinf(asked.request_rate) and asked.ramp_up_strategy is None and asked.dataset not in TRACES:
        level = math.ceil(SHARE_OF_PEAK * int(running.max()))
    else:
        return None
    edges = np.flatnonzero(np.diff(running >= level, prepend=False))
    if not edges.size:
        return None
    lengths = times[edges[1::2]] - times[edges[::2]]
    longest = int(lengths.argmax())
    begin, length = float(times[edges[2 * longest]]), float(lengths[longest])
    if length < SHORTEST_SECONDS:
        return None
    end = float(times[edges[2 * longest + 1]])
    ended = tokens = 0.0
    for each in requests:
        if each.error_kind is not None:
            continue
        last = each.start + each.latency
        ended += begin < last <= end
        came = np.minimum(token_times(each), last)  # which a sum of intervals may be past by its rounding
        came = came if came.size else np.array([last])
        tokens += each.output_tokens * float(((begin < came) & (came <= end)).mean())
    return SteadyState(begin, length, tokens / length, ended / length)
