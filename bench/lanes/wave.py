"""Requests that begin together and are over when the last one is: through HTTP, or straight into a lane."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.bench.errors import ServerFailed
from loraplex.bench.load.client import opened
from loraplex.bench.load.driver import Measured, Tally, drive
from loraplex.bench.load.event_loop import run
from loraplex.bench.load.workload import Planned
from loraplex.bench.results.result import ClientCost, Request
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Sampling, Submit

TIMEOUT = 3600.0
"""Seconds that a request may take."""
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)


class Ask(Struct, frozen=True):
    """One request."""

    model: str
    adapter: str | None
    """What a lane calls it; None is the base."""
    prompt: list[int]
    output_tokens: int
    fields: Mapping[str, Any] = {}
    """What the body has besides."""


def prompts(key: str, count: int, length: int, first: int, vocabulary: int) -> list[list[int]]:
    """So many prompts of random ids from `first` on; the same for the same key, and of no other the beginning."""
    chance = random.Random(key)
    return [chance.choices(range(first, vocabulary), k=length) for _ in range(count)]


def over_http(url: str, asks: Sequence[Ask], limit: float = TIMEOUT) -> Measured:
    """Send all of them to /v1/completions of a server, which has `limit` seconds for each.

    Raises ServerFailed with the first error, if there is one.
    """
    measured = run(_send(f"{url}/v1/completions", [planned(ask) for ask in asks], limit))
    for ask, request in zip(asks, measured.requests, strict=True):
        if request.error_kind is None and request.usage_tokens is None:
            raise ServerFailed(f"{url} sends no usage, so its tokens cannot be counted")
        if request.error_kind is not None:
            raise ServerFailed(f"{url}, {request.model}: {request.error_kind}: {request.error}")
        if request.output_tokens != ask.output_tokens:
            raise ServerFailed(f"{url}, {request.model}: {request.output_tokens} tokens, not {ask.output_tokens}")
    return measured


async def _send(url: str, plan: Sequence[Planned], limit: float) -> Measured:
    async with opened(url, {}, limit, insecure=False) as client:
        return await drive(client, plan, None, Tally())


def planned(ask: Ask) -> Planned:
    """The request as it is sent."""
    body = {
        "model": ask.model,
        "prompt": ask.prompt,
        "max_tokens": ask.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **ask.fields,
    }
    return Planned(0.0, ask.model, msgspec.json.encode(body), len(ask.prompt))


def in_lane(lane: Lane, asks: Sequence[Ask], clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Submit all of them and step until they have ended, as the engine process does. Raises ServerFailed."""
    requests = [Request(model=ask.model, input_tokens=len(ask.prompt)) for ask in asks]
    last = [0.0] * len(asks)
    left = len(asks)
    start = clock()
    for sequence, ask in enumerate(asks):
        lane.submit(Submit(sequence, ask.adapter, ask.prompt, ask.output_tokens, ENDLESS))
    while left:
        for output in lane.step():
            if output.error:
                raise ServerFailed(f"lane {lane.name}: {output.error}")
            now, request = clock() - start, requests[output.sequence]
            if output.tokens:
                if request.output_tokens:
                    request.itls.append(now - last[output.sequence])
                else:
                    request.ttft = now
                last[output.sequence] = request.latency = now
                request.output_tokens += len(output.tokens)
            left -= output.finish is not None
    for ask, request in zip(asks, requests, strict=True):
        if request.output_tokens != ask.output_tokens:
            raise ServerFailed(f"lane {lane.name}: {request.output_tokens} tokens instead of {ask.output_tokens}")
        request.usage_tokens = request.output_tokens
    return Measured(requests, clock() - start, ClientCost(), [])
