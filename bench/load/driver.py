"""Sends the requests of a workload at their times and gathers what came."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct, field

from loraplex.bench.load.client import Client
from loraplex.bench.load.workload import Planned
from loraplex.bench.results.result import ClientCost, RateChange, Request


class Tally(Struct):
    """How far a run is; progress shows it while the run changes it."""

    total: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    chunks: int = 0
    """With tokens."""
    ttfts: list[float] = field(default_factory=list)
    """Seconds, of the requests that are done."""
    began: float = 0.0
    """time.perf_counter()."""

    def count(self, chunks: int) -> None:
        self.chunks += chunks


class Measured(Struct, frozen=True):
    requests: list[Request]
    """In the order of the plan, a conversation's turns together; those that ended, where the run was interrupted."""
    duration: float
    """Seconds from the first request's time to the last one's end, or to the interruption."""
    cost: ClientCost
    rate_changes: list[RateChange]
    unfinished: int = 0
    """Requests that an interruption gave up, or that it came before."""
    unsent: int = 0
    """Requests whose turn did not come in time."""
    turns: list[int] = []
    """Planned of each conversation; empty where there were none."""


async def drive(
    client: Client,
    plan: Sequence[Planned],
    concurrency: int | None,
    tally: Tally,
    stop: asyncio.Event | None = None,
    limit: float = math.inf,
    conversations: int | None = None,
) -> Measured:
    """Send every request at its time, at most `concurrency` at once; the others wait in the client, in order.

    A conversation goes on until a turn fails, at most `conversations` at once. After `limit` seconds no other request
    is sent, and those under way are read to their end. Once `stop` is set no other is sent either, and those under way
    are given up.
    """
    places = asyncio.Semaphore(concurrency) if concurrency else nullcontext()
    talks = asyncio.Semaphore(conversations) if conversations else nullcontext()
    gc.collect()
    gc.freeze()  # what the workload made need not be looked at again during the run
    tally.total = sum(1 + each.left for each in plan)
    changes: list[RateChange] = []
    ended: dict[tuple[int, int], Request] = {}
    processor = time.process_time()
    tally.began = began = time.perf_counter()

    async def send(index: int, planned: Planned, due: float) -> Request | None:
        """None where its time was over."""
        headers = {"x-request-id": planned.request_id} if planned.request_id else {}
        if planned.session is not None:
            headers["x-session-id"] = planned.session
        async with places:
            if time.perf_counter() - began >= limit:
                return None
            tally.running += 1
            request = await client.ask(planned.model, planned.body, began, tally.count, headers)
            tally.running -= 1
        request.queue = request.start + began - due
        request.input_tokens = request.input_tokens or planned.input_tokens
        request.turn = planned.turn
        if planned.session is not None:
            request.conversation = index
        ended[index, planned.turn] = request
        tally.done += 1
        if request.error_kind is None:
            tally.ttfts.append(request.ttft)
        else:
            tally.failed += 1
            tally.total -= planned.left
        return request

    async def converse(index: int, planned: Planned) -> None:
        """Send a request, and what follows in its conversation."""
        due = time.perf_counter()
        async with talks:
            while (request := await send(index, planned, due)) and request.error_kind is None and planned.then:
                planned = planned.then(request)
                due = time.perf_counter() + planned.at
                if due - began >= limit:
                    return
                await _sleep_until(due)

    async def send_all() -> None:
        tasks = []
        try:
            for index, planned in enumerate(plan):
                if planned.at >= limit:
                    break
                await _sleep_until(began + planned.at)
                if planned.rate is not None:
                    _note(changes, planned.rate)
                tasks.append(asyncio.create_task(converse(index, planned)))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    try:
        await _until(stop, send_all())
    finally:
        gc.unfreeze()
    duration = time.perf_counter() - began
    cost = ClientCost(time.process_time() - processor, duration, tally.chunks)
    requests = [ended[index] for index in sorted(ended)]
    left = tally.total - len(requests)
    unfinished = left if stop is not None and stop.is_set() else 0
    turns = [1 + each.left for each in plan if each.session is not None]
    return Measured(requests, duration, cost, changes, unfinished, left - unfinished, turns)


async def warm_up(client: Client, plan: Sequence[Planned], count: int, concurrency: int | None) -> None:
    """Send `count` requests that nobody counts, to every model of the plan in turn.

    All are the plan's first, as in vLLM: what one model's prefix cache has of it is of no use to another, so one
    request of the run is answered from a cache for that reason, however many models there are.
    """
    first: dict[str, Any] = msgspec.json.decode(plan[0].body)
    models = list(dict.fromkeys(each.model for each in plan))
    places = asyncio.Semaphore(concurrency) if concurrency else nullcontext()

    async def send(model: str) -> None:
        async with places:
            await client.ask(model, msgspec.json.encode(first | {"model": model}), time.perf_counter())

    await asyncio.gather(*(send(models[index % len(models)]) for index in range(count)))


async def _sleep_until(moment: float) -> None:
    """`moment` is in time.perf_counter()."""
    # uvloop's timers are in whole milliseconds, and may end too soon.
    while (wait := moment - time.perf_counter()) > 0:  # noqa: ASYNC110
        await asyncio.sleep(wait)


async def _until(stop: asyncio.Event | None, work: Coroutine[None, None, None]) -> None:
    """Do the work to its end, or until `stop` is set."""
    if stop is None:
        return await work
    tasks = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _note(changes: list[RateChange], rate: float) -> None:
    """vLLM's `rps_change_events`: an entry for each whole number of requests a second that the rate has come to."""
    now = datetime.now().isoformat()
    reached = int(rate)
    if not changes:
        changes.append(RateChange(reached, now))
    changes.extend(RateChange(rps, now) for rps in range(changes[-1].rps + 1, reached + 1))
