"""Slots go round the adapters; a request gets all of its places or none."""

from __future__ import annotations

import pytest

from loraplex.server.admission import Admission, Ticket
from loraplex.server.errors import QueueFull
from loraplex.server.metrics import Metrics


def admission(running: int, waiting: int) -> Admission:
    return Admission(running, waiting, Metrics())


async def test_a_flood_costs_another_adapter_one_turn() -> None:
    queue = admission(1, 100)
    (first, *flood) = queue.enter("busy", 10)
    (other,) = queue.enter("quiet", 1)
    queue.release(first)
    assert flood[0].place == "slot"
    queue.release(flood[0])
    assert other.place == "slot"


async def test_a_full_queue_takes_nothing_of_a_request() -> None:
    queue = admission(2, 1)
    tickets = queue.enter("a", 3)
    with pytest.raises(QueueFull) as refusal:
        queue.enter("b", 1)
    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after >= 1
    assert (queue.running, queue.waiting) == (2, 1)
    queue.release(tickets[0])
    assert tickets[2].place == "slot"
    queue.enter("b", 1)


async def test_places_come_back_wherever_they_were() -> None:
    queue = admission(2, 10)
    tickets: list[Ticket] = queue.enter("a", 3) + queue.enter("b", 3)
    for ticket in (tickets[4], tickets[0], tickets[0], tickets[2], *tickets):
        queue.release(ticket)
    assert (queue.running, queue.waiting) == (0, 0)
    assert all(ticket.place == "slot" for ticket in queue.enter("c", 2))
