"""Slots go round classes, keys and adapters; a request gets all of its places or none."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import openai
import pytest

from loraplex.server.admission import Admission, Terms, Ticket
from loraplex.server.errors import NotReady, QueueFull
from loraplex.server.keys import Key, digest, entry, new_key
from loraplex.server.metrics import Metrics
from tests.server.conftest import DEMO
from tests.server.process import serving, wait_until


def admission(running: int, waiting: int, tokens: int | None = None) -> Admission:
    return Admission(running, waiting, Metrics(), max_waiting_tokens=tokens)


def order(queue: Admission, first: Ticket, waiting: list[Ticket]) -> list[Ticket]:
    """In which order those that wait get the one slot."""
    found = [first]
    while len(found) <= len(waiting):
        queue.release(found[-1])
        found += [ticket for ticket in waiting if ticket.place == "slot"]
    return found[1:]


async def test_a_flood_costs_another_adapter_one_turn() -> None:
    queue = admission(1, 100)
    (first, *flood) = queue.enter("busy", [1] * 10)
    (other,) = queue.enter("quiet", [1])
    assert order(queue, first, [*flood, other]).index(other) == 1


async def test_a_flood_costs_another_key_one_turn_whatever_its_adapters() -> None:
    queue = admission(1, 100)
    (first,) = queue.enter("a", [1], key="greedy")
    flood = [ticket for name in "abcdef" for ticket in queue.enter(name, [1] * 5, key="greedy")]
    others = queue.enter("a", [1, 1], key="modest")
    turns = order(queue, first, flood + others)
    assert [turns.index(other) for other in others] == [1, 3]
    # Under the greedy key, its adapters take turns.
    greedy = [ticket.adapter for ticket in turns if ticket.key == "greedy"]
    assert sorted(greedy[:6]) == list("abcdef")


async def test_a_lower_class_gets_less_but_never_nothing() -> None:
    queue = admission(1, 100)
    (first,) = queue.enter("x", [1])
    waiting = [
        ticket
        for name, priority in (("h", "high"), ("n", "normal"), ("l", "low"))
        for ticket in queue.enter(name, [1] * 14, terms=Terms(priority=priority))  # type: ignore[arg-type]
    ]
    turns = [ticket.adapter for ticket in order(queue, first, waiting)]
    assert {name: turns[:14].count(name) for name in "hnl"} == {"h": 8, "n": 4, "l": 2}
    assert turns[:7].count("l") == 1


async def test_an_adapter_runs_no_more_than_its_own_limit() -> None:
    queue = admission(4, 100)
    terms = Terms(max_running=2)
    capped = queue.enter("capped", [1] * 5, terms=terms)
    assert queue.running == {"capped": 2}
    free = queue.enter("free", [1] * 3)
    assert queue.running == {"capped": 2, "free": 2}
    queue.release(capped[0])
    assert capped[2].place == "slot"
    queue.release(free[0])
    assert free[2].place == "slot"
    assert queue.running == {"capped": 2, "free": 2}


async def test_a_full_queue_takes_nothing_of_a_request() -> None:
    queue = admission(2, 1)
    tickets = queue.enter("a", [1] * 3)
    with pytest.raises(QueueFull) as refusal:
        queue.enter("b", [1])
    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after >= 1
    assert (queue.running.total(), queue.waiting.total()) == (2, 1)
    queue.release(tickets[0])
    assert tickets[2].place == "slot"
    queue.enter("b", [1])


async def test_a_request_that_never_fits_is_not_worth_another_try() -> None:
    queue = admission(2, 1)
    with pytest.raises(QueueFull, match="fewer") as refusal:
        queue.enter("a", [1] * 4)
    assert refusal.value.permanent


async def test_waiting_prompts_are_bounded_by_their_tokens() -> None:
    queue = admission(1, 100, tokens=50)
    (running,) = queue.enter("a", [1000])
    (long,) = queue.enter("a", [200])  # alone in the queue
    with pytest.raises(QueueFull, match="200 tokens wait, of at most 50"):
        queue.enter("a", [1])
    queue.release(long)
    queue.enter("a", [25, 25])
    with pytest.raises(QueueFull):
        queue.enter("a", [1])
    queue.release(running)
    assert queue.waiting_tokens == 25
    queue.enter("a", [25])


async def test_places_come_back_wherever_they_were() -> None:
    queue = admission(2, 10)
    tickets: list[Ticket] = queue.enter("a", [1] * 3) + queue.enter("b", [1] * 3)
    for ticket in (tickets[4], tickets[0], tickets[0], tickets[2], *tickets):
        queue.release(ticket)
    assert (queue.running.total(), queue.waiting.total(), queue.waiting_tokens) == (0, 0, 0)
    assert all(ticket.place == "slot" for ticket in queue.enter("c", [1] * 2))


async def test_closing_turns_away_who_waits_and_not_who_runs() -> None:
    queue = admission(1, 10)
    running, waiting = queue.enter("a", [1, 1])
    queue.close(NotReady("the server is shutting down"))
    with pytest.raises(NotReady):
        await waiting.admitted()
    with pytest.raises(NotReady):
        queue.enter("a", [1])
    await running.admitted()
    queue.release(running)
    assert queue.running == {}


async def test_a_key_that_floods_starves_no_other(tmp_path: Path) -> None:
    flood, other = new_key(), new_key()
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(entry(Key(name, digest(key))) for name, key in (("flood", flood), ("other", other))))
    with serving(DEMO, tmp_path / "log", "--keys", str(path), "--max-running", "2") as server:
        client = server.async_client

        async def ask(key: str, model: str, name: str) -> openai.types.Completion:
            return await client.with_options(api_key=key).completions.create(
                model=model,
                prompt=[5],
                max_tokens=100,
                temperature=2,
                extra_body={"ignore_eos": True},
                extra_headers={"x-request-id": name},
            )

        engine = server.engine()
        engine.suspend()  # until all of them are there
        asked = [
            asyncio.create_task(ask(flood, ("travel", "tone", "json")[index % 3], f"flood-{index}"))
            for index in range(40)
        ]
        await asyncio.to_thread(server.wait_for, "loraplex_requests_waiting", 38)
        asked += [asyncio.create_task(ask(other, "travel", f"other-{index}")) for index in range(2)]
        await asyncio.to_thread(server.wait_for, "loraplex_requests_waiting", 40)
        engine.resume()
        answers = await asyncio.gather(*asked)
        assert all(answer.usage and answer.usage.completion_tokens == 100 for answer in answers)
        await client.close()

        def ended() -> list[str]:
            return re.findall(r"request=(flood|other)-", server.log.read_text())

        wait_until(lambda: len(ended()) == len(asked))
        # They waited for a slot once each, not for the forty.
        assert [place for place, key in enumerate(ended()) if key == "other"][-1] <= 20


def test_the_server_bounds_waiting_tokens(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log", "--max-running", "1", "--max-waiting-tokens", "100") as server:
        with pytest.raises(openai.RateLimitError, match="tokens wait") as refusal:
            server.client.completions.create(model="travel", prompt=[[5] * 90, [5] * 90, [5] * 90], max_tokens=1)
        assert refusal.value.code == "queue_full"
        assert refusal.value.response.headers["x-should-retry"] == "false"  # it would not fit into an empty queue
        assert server.client.completions.create(model="travel", prompt=[[5] * 90, [5] * 90], max_tokens=1).choices
