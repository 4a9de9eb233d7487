"""Who may run, who waits, who is turned away.

A ticket is one sequence's place: in the queue first, then in a slot. Free slots go round: by class of priority, in a
class by key, under a key by adapter. So a flood from one key, or for one adapter, costs another at most its turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import Literal

from msgspec import Struct

from loraplex.server.errors import LoraplexError, QueueFull
from loraplex.server.metrics import Metrics
from loraplex.server.rotation import Priority, Rotation

MAX_RETRY_AFTER = 60


class Terms(Struct, frozen=True):
    """How the sequences of one adapter are served."""

    priority: Priority = "normal"
    max_running: int | None = None
    """Sequences of it that run at the same time; None leaves it to the server."""


class Ticket:
    """One sequence's place."""

    def __init__(self, adapter: str, key: str, tokens: int, terms: Terms) -> None:
        self.adapter = adapter
        self.key = key
        self.tokens = tokens
        """Of its prompt."""
        self.terms = terms
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
    """`max_running` slots and a queue, bounded by sequences and by their prompts' tokens. Used from one event loop."""

    def __init__(
        self, max_running: int, max_waiting: int, metrics: Metrics, *, max_waiting_tokens: int | None = None
    ) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens
        self.running: Counter[str] = Counter()
        """Sequences in slots, by adapter; none at zero."""
        self.waiting: Counter[str] = Counter()
        """Sequences in the queue, by adapter; none at zero."""
        self.waiting_tokens = 0
        self._turns: Rotation[Ticket] = Rotation()
        self._mean_seconds = 1.0
        self._closed: LoraplexError | None = None
        self._metrics = metrics

    def enter(self, adapter: str, prompts: list[int], *, key: str = "", terms: Terms | None = None) -> list[Ticket]:
        """Places for the sequences of one request, all or none, by the number of their prompts' tokens.

        Every ticket must be released. `key` names whose request it is. Raises QueueFull with the seconds after which a
        place is likely, or what the queue was closed with.
        """
        if self._closed:
            raise self._closed
        terms = terms or Terms()
        self._check_room(adapter, prompts, terms)
        tickets = [Ticket(adapter, key, tokens, terms) for tokens in prompts]
        for ticket in tickets:
            self._turns.add(ticket, terms.priority, key, adapter)
            self._count_waiting(ticket, 1)
        self._fill()
        return tickets

    def release(self, ticket: Ticket) -> None:
        """Give a place back, wherever the ticket is; a second time changes nothing."""
        if ticket.place == "queue":
            self._turns.remove(ticket, ticket.terms.priority, ticket.key, ticket.adapter)
            self._count_waiting(ticket, -1)
        elif ticket.place == "slot":
            self._count_running(ticket, -1)
            self._mean_seconds += 0.1 * (time.monotonic() - ticket.since - self._mean_seconds)
        else:
            return
        ticket.place = "none"
        self._fill()

    def close(self, error: LoraplexError) -> None:
        """Turn away whoever waits and whoever comes; what runs goes on."""
        self._closed = error
        for ticket in list(self._turns):
            ticket.refusal = error
            self.release(ticket)
            ticket.settled.set()

    def _check_room(self, adapter: str, prompts: list[int], terms: Terms) -> None:
        """Raises QueueFull."""
        room = self.max_running - self.running.total()
        if terms.max_running is not None:
            room = min(room, terms.max_running - self.running[adapter])
        at_once = max(0, min(room - self.waiting[adapter], len(prompts)))
        later = prompts[at_once:]
        waiting = self.waiting.total()
        slots = min(self.max_running, terms.max_running or self.max_running)
        if waiting + len(later) > self.max_waiting:
            raise self._full(
                f"{self.running.total()} sequences run and {waiting} wait, of at most {self.max_running} and "
                f"{self.max_waiting}; this request has {len(prompts)}",
                len(prompts),
                permanent=len(prompts) > slots + self.max_waiting,
            )
        # A sequence that waits alone may: a prompt longer than the limit would never get in otherwise.
        most = self.max_waiting_tokens
        if most is not None and waiting + len(later) > 1 and self.waiting_tokens + sum(later) > most:
            raise self._full(
                f"prompts of {self.waiting_tokens} tokens wait, of at most {most}; this request has {sum(later)} more",
                len(prompts),
                permanent=len(prompts) > slots + 1 and sum(prompts[slots:]) > most,
            )

    def _full(self, what: str, count: int, *, permanent: bool) -> QueueFull:
        if permanent:
            return QueueFull(f"The queue is full: {what}. Ask for fewer at once", permanent=True)
        turns = math.ceil((self.waiting.total() + count) / self.max_running)
        seconds = min(MAX_RETRY_AFTER, max(1, math.ceil(turns * self._mean_seconds)))
        return QueueFull(f"The queue is full: {what}. Try again later", retry_after=seconds)

    def _may_run(self, ticket: Ticket) -> bool:
        limit = ticket.terms.max_running
        return limit is None or self.running[ticket.adapter] < limit

    def _fill(self) -> None:
        """Give free slots to whose turn it is."""
        while self.running.total() < self.max_running and (ticket := self._turns.take(self._may_run)):
            self._count_waiting(ticket, -1)
            self._count_running(ticket, 1)
            ticket.place = "slot"
            ticket.since = time.monotonic()
            ticket.settled.set()

    def _count_waiting(self, ticket: Ticket, change: int) -> None:
        self.waiting_tokens += change * ticket.tokens
        _add(self.waiting, ticket.adapter, change)
        self._metrics.waiting.labels(ticket.adapter).inc(change)

    def _count_running(self, ticket: Ticket, change: int) -> None:
        _add(self.running, ticket.adapter, change)
        self._metrics.running.labels(ticket.adapter).inc(change)


def _add(counts: Counter[str], name: str, change: int) -> None:
    counts[name] += change
    if not counts[name]:
        del counts[name]
