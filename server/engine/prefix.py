"""KV of finished sequences, kept so that a conversation that comes back is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.kv_cache import Tokens

Ids = npt.NDArray[np.int64]
Key = TypeVar("Key")

SHORTEST = 16
"""Tokens; a shorter prefix is computed about as fast as it is copied."""


def common_prefix(one: Ids, other: Ids) -> int:
    """How many ids the two begin with in common."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


class PrefixCache(Generic[Key]):
    """Token prefixes with their KV, least recently used first. A prefix is found under the owner it was kept for only.

    The caller sees to the size, with `tokens` and `evict`.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[Key, Ids, Tokens]] = OrderedDict()
        self._next = 0
        self.tokens = 0

    def find(self, owner: Key, ids: Ids) -> tuple[int, Tokens]:
        """How many of the first ids some entry of this owner holds, and that entry's KV; (0, []) if none does."""
        best, found = 0, None
        for number, (key, held, _) in self._entries.items():
            if key is owner and (length := common_prefix(held, ids)) > best:
                best, found = length, number
        if found is None or best < SHORTEST:
            return 0, []
        self._entries.move_to_end(found)
        return best, self._entries[found][2]

    def covers(self, owner: Key, ids: Ids) -> bool:
        """Whether some entry of this owner holds all of these ids."""
        return any(key is owner and common_prefix(held, ids) == len(ids) for key, held, _ in self._entries.values())

    def keep(self, owner: Key, ids: Ids, kv: Tokens) -> None:
        """Add an entry; entries that are a prefix of it go."""
        for number, (key, held, _) in list(self._entries.items()):
            if key is owner and common_prefix(held, ids) == len(held):
                self._drop(number)
        self._entries[self._next] = (owner, ids, kv)
        self._next += 1
        self.tokens += len(ids)

    def evict(self) -> bool:
        """Drop the least recently used entry; False if there is none."""
        if not self._entries:
            return False
        self._drop(next(iter(self._entries)))
        return True

    def forget(self, owner: Key) -> None:
        """Drop every entry of one owner."""
        for number, (key, _, _) in list(self._entries.items()):
            if key is owner:
                self._drop(number)

    def _drop(self, number: int) -> None:
        self.tokens -= len(self._entries.pop(number)[1])
