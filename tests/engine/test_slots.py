"""Which adapters have a place in the graph, and which number stands for them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loraplex.server.engine.residency import choose
from loraplex.server.engine.slots import Adapter, Slots


@given(
    count=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))), max_size=30),
)
def test_slots(count: int, steps: list[tuple[str, set[str]]]) -> None:
    """No number is ever given to two adapters, and no slot is taken from one that is busy."""
    slots = Slots(count, vocab_size=1000)
    adapters = {name: Adapter(name, Path(name), name, {}) for name in "abcdef"}
    given: dict[int, Adapter] = {}
    held: dict[Adapter, int] = {}
    used: dict[Adapter, int] = {}
    for time, (name, names) in enumerate(steps):
        adapter, busy = adapters[name], {adapters[other] for other in names} & set(slots.adapters)
        used[adapter] = time
        if adapter not in slots:
            before = set(slots.adapters)
            slot = slots.take(adapter, busy, used)
            assert (slot is None) == (len(before) == count and before <= busy)
            if slot is None:
                slots.promise(1)
                assert len(slots.leaving) == 1
                assert slots.leaving <= before
                continue
            assert busy <= set(slots.adapters)
            assert slot == slots.number(adapter) % (count + 1)
            if gone := before - set(slots.adapters):
                assert used[min(before - busy, key=used.__getitem__)] == used[gone.pop()], "not the least recently used"
            assert slots.number(adapter) not in given
            given[slots.number(adapter)] = adapter
            held[adapter] = slots.number(adapter)
        assert slots.number(adapter) == held[adapter]
    assert len({slots.number(adapter) % (count + 1) for adapter in slots.adapters}) == len(slots.adapters)
    assert all(number % (count + 1) > 0 for number in given)


def test_slots_fall_free_in_turn() -> None:
    """Who has been there longest leaves first, half of them at a time, until nobody waits any more."""
    a, b, c, d = (Adapter(name, Path(name), name, {}) for name in "abcd")
    slots, everyone = Slots(4, vocab_size=1000), {a, b, c, d}
    for adapter in (b, a, d, c):
        assert slots.take(adapter, (), {})
    slots.promise(3, now=1.0)
    assert slots.leaving == {a, b}
    slots.promise(3, now=2.0)
    assert slots.overdue(0.5) == []
    assert slots.overdue(1.0) == [b, a]
    new = Adapter("new", Path("new"), "new", {})
    assert slots.take(new, everyone - {b}, {})
    slots.promise(1, now=3.0)
    assert slots.leaving == {a}
    slots.promise(2, now=4.0)
    assert slots.leaving == {a, d}
    assert slots.overdue(1.0) == [a]
    slots.promise(0, now=5.0)
    assert slots.leaving == set()


def test_numbers_run_out() -> None:
    slots = Slots(1, vocab_size=2**28)  # eight numbers, two of them at a time for one slot
    adapters = [Adapter(str(index), Path(str(index)), "", {}) for index in range(8)]
    taken = [adapter for adapter in adapters if slots.take(adapter, (), {})]
    assert 2 <= len(taken) < 5
    assert slots.worn_out
    assert all(slots.number(adapter) * 2**28 < 2**31 for adapter in slots.adapters)


@given(
    known=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 99)),
    linked=st.sets(st.sampled_from("abcdefghij")),
    wanted=st.lists(st.sampled_from("abcdefgh")),
    capacity=st.integers(1, 5),
)
def test_residency(known: dict[str, int], linked: set[str], wanted: list[str], capacity: int) -> None:
    linked = set(sorted(linked)[:capacity])
    chosen = choose(known, linked, wanted, capacity)
    waiting = [name for name in dict.fromkeys(wanted) if name in known and name not in linked]
    if chosen is None:
        assert not waiting
        assert len(linked & known.keys()) == min(capacity, len(known))
        return
    assert set(chosen) <= known.keys()
    assert len(chosen) == min(capacity, len(known))
    assert set(waiting[:capacity]) <= set(chosen), "those that waited longest come first"
    assert set(chosen) != linked, "nothing is linked for nothing"
    spare = set(chosen) - set(waiting)
    left = known.keys() - set(chosen)
    assert all(known[name] >= known[other] for name in spare for other in left - set(waiting))
