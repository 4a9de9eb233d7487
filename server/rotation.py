"""Whose turn it is: what waits, by class of priority, then key, then adapter, each going round."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

Priority = Literal["high", "normal", "low"]

CYCLE: tuple[Priority, ...] = ("high", "normal", "high", "low", "high", "normal", "high")
"""Shares of 4, 2 and 1 in 7: a lower class gets less while a higher one waits, but never nothing."""

Item = TypeVar("Item")
_Queues = OrderedDict[str, OrderedDict[str, deque[Item]]]
"""By key, then by adapter; whose turn it is comes first. No queue is empty."""


class Rotation(Generic[Item]):
    """Those of one adapter under one key go in the order they came."""

    def __init__(self) -> None:
        self._classes: dict[Priority, _Queues[Item]] = {name: OrderedDict() for name in CYCLE}
        self._position = 0

    def __iter__(self) -> Iterator[Item]:
        for keys in self._classes.values():
            for adapters in keys.values():
                for queue in adapters.values():
                    yield from queue

    def add(self, item: Item, priority: Priority, key: str, adapter: str) -> None:
        self._classes[priority].setdefault(key, OrderedDict()).setdefault(adapter, deque()).append(item)

    def remove(self, item: Item, priority: Priority, key: str, adapter: str) -> None:
        """Raises KeyError or ValueError where it is not."""
        keys = self._classes[priority]
        queue = keys[key][adapter]
        queue.remove(item)
        _prune(keys, key, adapter)

    def take(self, may: Callable[[Item], bool]) -> Item | None:
        """Take out the item whose turn it is, of those that are first in their queue and may go; None if none may."""
        for step in range(len(CYCLE)):
            position = (self._position + step) % len(CYCLE)
            keys = self._classes[CYCLE[position]]
            for key, adapters in keys.items():
                for adapter, queue in adapters.items():
                    if may(queue[0]):
                        self._position = position + 1
                        item = queue.popleft()
                        keys.move_to_end(key)
                        adapters.move_to_end(adapter)
                        _prune(keys, key, adapter)
                        return item
        return None


def _prune(keys: _Queues[Item], key: str, adapter: str) -> None:
    if not keys[key][adapter]:
        del keys[key][adapter]
        if not keys[key]:
            del keys[key]
