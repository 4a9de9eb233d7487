"""Which adapters are linked: the least recently used ones make room for those that requests wait for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

A = TypeVar("A")


def choose(
    known: Mapping[A, int], linked: Collection[A], wanted: Iterable[A], capacity: int, pinned: Collection[A] = ()
) -> tuple[A, ...] | None:
    """The adapters to link next, in an order that goes by them alone; None where what is linked can stay.

    `known` maps every registered adapter to when it was last used, in any growing unit. `wanted` are those that
    requests wait for, longest first: they come first, so that none waits for more than as many swaps as it takes to
    link the ones before it; only those that are `pinned` and linked come before them, but for one place. What room is
    left goes to the most recently used, those that are linked before others.
    """
    waiting = [name for name in dict.fromkeys(wanted) if name in known and name not in linked]
    stay = [name for name in linked if name in known]
    if not waiting and len(stay) >= min(capacity, len(known)):
        return None
    keeping = [name for name in stay if name in pinned][: capacity - bool(waiting)]
    chosen = [*keeping, *waiting][:capacity]
    others = sorted(known.keys() - set(chosen), key=lambda name: (known[name], name in stay), reverse=True)
    return tuple(sorted(chosen + others[: capacity - len(chosen)], key=str))
