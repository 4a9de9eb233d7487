"""Kept prefixes: what is found is right whatever was kept, and found as fast among thousands."""

from __future__ import annotations

import random

import numpy as np
import pytest

from loraplex.server.engine import prefix
from loraplex.server.engine.kv_cache import Tokens
from loraplex.server.engine.prefix import BLOCK, CANDIDATES, SHORTEST, Ids, PrefixCache, common_prefix


class Owner:
    """As an adapter: two are never the same."""


def kv_of(number: int) -> Tokens:
    return [np.full((1, 1, 1), number, np.float32)]


def conversation(draw: random.Random, held: list[Ids]) -> Ids:
    """New tokens, behind the beginning of what is held or of nothing."""
    start = held[draw.randrange(len(held))] if held and draw.random() < 0.8 else np.empty(0, np.int64)
    start = start[: draw.randint(0, len(start))]
    return np.concatenate([start, np.array([draw.randrange(3) for _ in range(draw.randint(0, 40))], np.int64)])


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_is_found_but_for_less_than_a_block(seed: int) -> None:
    draw = random.Random(seed)
    owners: list[Owner | None] = [None, Owner(), Owner()]
    cache: PrefixCache[Owner | None] = PrefixCache()
    held: dict[int, tuple[Owner | None, Ids]] = {}
    for number in range(150):
        owner, ids = draw.choice(owners), conversation(draw, [ids for _, ids in held.values()])
        length, kv = cache.find(owner, ids)
        common = {each: common_prefix(its, ids) for each, (whose, its) in held.items() if whose is owner}
        longest = max(common.values(), default=0)
        assert length <= longest
        assert length >= (longest // BLOCK * BLOCK if longest >= SHORTEST else 0)
        if len(common) <= CANDIDATES:
            assert length == (longest if longest >= SHORTEST else 0)
        if length:
            assert common[int(kv[0][0, 0, 0])] == length
        if len(ids) >= SHORTEST and not cache.covers(owner, ids):
            cache.keep(owner, ids, kv_of(number))
            held[number] = owner, ids
        if draw.random() < 0.1:
            cache.evict()
        held = {each: found for each, found in held.items() if each in numbers(cache)}
        assert cache.tokens == sum(len(ids) for _, ids in held.values())
    cache.forget(owners[1])
    assert not any(held[each][0] is owners[1] for each in numbers(cache))
    while cache.evict():
        pass
    assert cache.tokens == 0
    assert cache.find(None, np.zeros(100, np.int64)) == (0, [])


def numbers(cache: PrefixCache[Owner | None]) -> set[int]:
    return {int(entry.kv[0][0, 0, 0]) for entry in cache._entries.values()}


def test_of_many_that_begin_the_same_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As thousands of short questions behind one system prompt."""
    cache: PrefixCache[None] = PrefixCache()
    compared = 0

    def counted(one: Ids, other: Ids) -> int:
        nonlocal compared
        compared += 1
        return common_prefix(one, other)

    monkeypatch.setattr(prefix, "common_prefix", counted)
    system = np.arange(3 * SHORTEST)
    questions = [np.concatenate([system, np.array([number] * SHORTEST)]) for number in range(3000)]
    for number, ids in enumerate(questions):
        before = compared
        assert cache.find(None, ids)[0] == (len(system) if number else 0)
        assert not cache.covers(None, ids)
        cache.keep(None, ids, kv_of(number))
        assert compared - before <= 3 * CANDIDATES
    for number in (0, 1500, 2999):
        length, kv = cache.find(None, questions[number])
        assert (length, int(kv[0][0, 0, 0])) == (len(questions[number]), number)


def test_a_conversation_takes_the_place_of_its_beginning() -> None:
    cache: PrefixCache[None] = PrefixCache()
    turns = [np.arange(length) for length in (20, 35, 61, 64, 100)]
    for number, ids in enumerate(turns):
        cache.keep(None, ids, kv_of(number))
        assert cache.tokens == len(ids)
        assert cache.covers(None, ids[:17])
        assert not cache.covers(None, np.append(ids, 0))
