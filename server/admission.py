"""Who may run, who waits, who is turned away.

A ticket is one sequence's place: in the queue first, then in a slot. Tickets queue by adapter and free slots go round
the adapters, so that a flood for one adapter costs another at most its turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from typing import Literal

from loraplex.server.errors import LoraplexError, QueueFull
from loraplex.server.metrics import Metrics

MAX_RETRY_AFTER = 60


class Ticket:
    """One sequence's place."""

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter
        self.place: Literal["queue", "slot", "none"] = "queue"
        self.since = time.monotonic()
        self.refusal: LoraplexError | None = None
        self.settled = asyncio.Event()

    async def admitted(self) -> None:
        """Wait for a slot. Raises what the queue was closed with."""
        await self.settled.wait()
        if self.refusal:
            raise self.refusal


class Admission:
    """`max_running` slots and a queue of `max_waiting` places. Used from one event loop."""

    def __init__(self, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.running = 0
        self.waiting = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._mean_seconds = 1.0
        self._closed: LoraplexError | None = None
        self._metrics = metrics

    def enter(self, adapter: str, count: int) -> list[Ticket]:
        """Places for the `count` sequences of one request, all or none. Every ticket must be released.

        Raises QueueFull with the seconds after which a place is likely, or what the queue was closed with.
        """
        if self._closed:
            raise self._closed
        free = self.max_running - self.running
        if self.waiting + count > free + self.max_waiting:
            turns = math.ceil((self.waiting + count) / self.max_running)
            raise QueueFull(
                f"{self.running} sequences run and {self.waiting} wait, of at most {self.max_running} and "
                f"{self.max_waiting}; this request has {count}. Try again later",
                retry_after=min(MAX_RETRY_AFTER, math.ceil(turns * self._mean_seconds)),
            )
        tickets = [Ticket(adapter) for _ in range(count)]
        self._queues.setdefault(adapter, deque()).extend(tickets)
        self._count_waiting(adapter, count)
        self._fill()
        return tickets

    def release(self, ticket: Ticket) -> None:
        """Give a place back, wherever the ticket is; a second time changes nothing."""
        if ticket.place == "queue":
            queue = self._queues[ticket.adapter]
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.adapter]
            self._count_waiting(ticket.adapter, -1)
        elif ticket.place == "slot":
            self.running -= 1
            self._metrics.running.labels(ticket.adapter).dec()
            self._mean_seconds += 0.1 * (time.monotonic() - ticket.since - self._mean_seconds)
        ticket.place = "none"
        self._fill()

    def close(self, error: LoraplexError) -> None:
        """Turn away whoever waits and whoever comes; what runs goes on."""
        self._closed = error
        waiting = [ticket for queue in self._queues.values() for ticket in queue]
        for ticket in waiting:
            self.release(ticket)
            ticket.refusal = error
            ticket.settled.set()

    def _fill(self) -> None:
        """Give free slots to the queues in turn."""
        while self.running < self.max_running and self._queues:
            adapter, queue = self._queues.popitem(last=False)
            ticket = queue.popleft()
            if queue:
                self._queues[adapter] = queue
            self._count_waiting(adapter, -1)
            self.running += 1
            self._metrics.running.labels(adapter).inc()
            ticket.place = "slot"
            ticket.since = time.monotonic()
            ticket.settled.set()

    def _count_waiting(self, adapter: str, change: int) -> None:
        self.waiting += change
        self._metrics.waiting.labels(adapter).inc(change)
