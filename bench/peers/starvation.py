"""How long one adapter's first token takes while the requests for another never cease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from msgspec import Struct

from loraplex.bench.errors import ServerFailed
from loraplex.bench.lanes.wave import TIMEOUT, Ask, planned
from loraplex.bench.load.client import opened
from loraplex.bench.load.event_loop import run
from loraplex.bench.results.result import Request

LOAD_STREAMS = 4
"""Half of the slots that servers have here, so that it is not for want of one that the other adapter waits."""


class Starvation(Struct, frozen=True):
    """TTFTs in seconds."""

    unloaded: float
    loaded: float


def starve(url: str, waiting: Sequence[Ask], loading: Sequence[Ask], seconds: float) -> Starvation:
    """Ask the first of `waiting` of an idle server, the second a quarter into `seconds` of load.

    Raises ServerFailed.
    """
    return run(_starve(url, waiting, loading, seconds))


async def _starve(url: str, waiting: Sequence[Ask], loading: Sequence[Ask], seconds: float) -> Starvation:
    unloaded = await _send(url, waiting[0])
    end = time.perf_counter() + seconds
    asks = iter(loading)
    streams = [asyncio.create_task(_load(url, asks, end)) for _ in range(LOAD_STREAMS)]
    try:
        await asyncio.sleep(seconds / 4)
        loaded = await _send(url, waiting[1])
        await asyncio.gather(*streams)
    finally:
        for stream in streams:
            stream.cancel()
    return Starvation(unloaded.ttft, loaded.ttft)


async def _load(url: str, asks: Iterator[Ask], end: float) -> None:
    """One stream of a closed loop."""
    while time.perf_counter() < end:
        await _send(url, next(asks))


async def _send(url: str, ask: Ask) -> Request:
    # llama-server drops connections that were idle: every request gets one of its own, on all sides.
    async with opened(f"{url}/v1/completions", {}, TIMEOUT, insecure=False) as client:
        request = await client.ask(ask.model, planned(ask).body, time.perf_counter())
    if request.error_kind is not None:
        raise ServerFailed(f"{url}, {request.model}: {request.error_kind}: {request.error}")
    return request
