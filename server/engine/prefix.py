"""KV of finished sequences, kept so that a conversation that comes back is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.kv_cache import Tokens

Ids = npt.NDArray[np.int64]
Key = TypeVar("Key")

SHORTEST = 16
"""Tokens; a shorter prefix is computed about as fast as it is copied."""
BLOCK = 8
"""Tokens by which entries are looked up."""
CANDIDATES = 8
"""Of the entries with the most blocks in common so many, those kept last, are compared token by token. Another may hold
more, by less than a block."""


def common_prefix(one: Ids, other: Ids) -> int:
    """How many ids the two begin with in common."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


class Entry(NamedTuple, Generic[Key]):
    """A prefix, and `blocks`: a hash of its first block, of its first two, and so on."""

    owner: Key
    ids: Ids
    kv: Tokens
    blocks: list[int]


class PrefixCache(Generic[Key]):
    """Token prefixes with their KV, least recently used first. A prefix is found under the owner it was kept for only.

    There may be tens of thousands, so they are looked up by hashes of whole blocks, as vLLM's prefix cache does
    (https://docs.vllm.ai/en/latest/design/prefix_caching.html), and what is found is compared token by token.

    The caller sees to the size, with `tokens` and `evict`.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, Entry[Key]] = OrderedDict()
        self._beginning: dict[int, dict[int, None]] = {}
        """Entries that begin with some blocks, by their hash."""
        self._ending: dict[int, dict[int, None]] = {}
        """Entries that have no other whole block."""
        self._next = 0
        self.tokens = 0

    def find(self, owner: Key, ids: Ids) -> tuple[int, Tokens]:
        """How many of the first ids an entry of this owner holds, and that entry's KV; (0, []) if none does."""
        best, found = 0, None
        for number in self._alike(blocks(owner, ids)):
            entry = self._entries[number]
            if entry.owner is owner and (length := common_prefix(entry.ids, ids)) > best:
                best, found = length, number
        if found is None or best < SHORTEST:
            return 0, []
        self._entries.move_to_end(found)
        return best, self._entries[found].kv

    def covers(self, owner: Key, ids: Ids) -> bool:
        """Whether an entry of this owner holds all of these ids."""
        return self.find(owner, ids)[0] == len(ids)

    def keep(self, owner: Key, ids: Ids, kv: Tokens) -> None:
        """Add an entry; entries that are a prefix of it go."""
        entry = Entry(owner, ids, kv, blocks(owner, ids))
        for number in [number for key in entry.blocks for number in latest(self._ending.get(key))]:
            held = self._entries[number]
            if held.owner is owner and common_prefix(held.ids, ids) == len(held.ids):
                self._drop(number)
        self._entries[self._next] = entry
        for key in entry.blocks:
            self._beginning.setdefault(key, {})[self._next] = None
        for key in entry.blocks[-1:]:
            self._ending.setdefault(key, {})[self._next] = None
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
        for number in [number for number, entry in self._entries.items() if entry.owner is owner]:
            self._drop(number)

    def _alike(self, keys: list[int]) -> Iterator[int]:
        """The latest of the entries that have the most of these blocks."""
        most = None
        for key in keys:
            if (found := self._beginning.get(key)) is None:
                break
            most = found
        return latest(most)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.tokens -= len(entry.ids)
        for index, keys in ((self._beginning, entry.blocks), (self._ending, entry.blocks[-1:])):
            for key in keys:
                del index[key][number]
                if not index[key]:
                    del index[key]


def blocks(owner: object, ids: Ids) -> list[int]:
    """Hashes of the first block of ids, of the first two, and so on, under this owner."""
    content, size = ids.tobytes(), BLOCK * ids.itemsize
    key, found = id(owner), []  # an entry keeps its owner, so nobody else gets this id while it is there
    for end in range(size, len(content) + 1, size):
        key = hash((key, content[end - size : end]))
        found.append(key)
    return found


def latest(numbers: dict[int, None] | None) -> Iterator[int]:
    """At most CANDIDATES of them, the one kept last first."""
    return islice(reversed(numbers or {}), CANDIDATES)
