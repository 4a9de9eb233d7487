"""Which adapter is in which slot of an engine, and how its prompts are tagged.

A slot that changes hands gets a new number, so that nothing the prefix cache holds under the old one is found again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from pathlib import Path

from msgspec import Struct

from loraplex.server.engine.routing import MOST_IDS


class Adapter(Struct, frozen=True):
    """A registered adapter; another file under the same name is another adapter."""

    name: str
    file: Path
    sha256: str
    ranks: dict[str, int]
    """Rank by projection name."""

    def __hash__(self) -> int:
        return hash((self.name, self.sha256))


class Slots:
    """`count` slots, from 1 on, of a graph over a vocabulary of `vocab_size`."""

    def __init__(self, count: int, vocab_size: int) -> None:
        self._count = count
        self._most = MOST_IDS // vocab_size
        self._numbers = list(range(count + 1))
        self._slots: dict[Adapter, int] = {}
        self._free = list(range(count, 0, -1))
        self._leaving: dict[Adapter, float] = {}
        self.pinned: set[Adapter] = set()
        """Adapters that give up no slot while another has one; whoever owns the slots may share a set of its own."""

    def __contains__(self, adapter: Adapter) -> bool:
        return adapter in self._slots

    @property
    def adapters(self) -> list[Adapter]:
        return list(self._slots)

    @property
    def _keeping(self) -> Set[Adapter]:
        """The pinned adapters; none where they have every slot, of which one is for the others."""
        return self.pinned if any(adapter not in self.pinned for adapter in self._slots) else set()

    @property
    def leaving(self) -> Set[Adapter]:
        """Adapters that begin no more sequences, since others wait for their slots."""
        return self._leaving.keys()

    def promise(
        self, count: int, now: float = 0.0, held: Collection[Adapter] = (), new: Collection[Adapter] = ()
    ) -> None:
        """Choose up to `count` adapters to give up their slots: those that have been there longest, at most half.

        Adapters that wait for a slot would otherwise wait for as long as requests for the others keep coming. The other
        half goes on as before, so that their requests do not wait for a turn too. `now` in seconds. Of those chosen
        earlier, `held` have sequences that do not give way: they still leave as soon as they can, and of the rest half
        leaves. Those that are `new` are to begin first.
        """
        pinned = self._keeping
        kept = [adapter for adapter in self._leaving if count and adapter in self._slots and adapter not in pinned]
        late = [adapter for adapter in kept if adapter in held]
        count = min(count, max(1, (self._count - len(late)) // 2))
        soon = [adapter for adapter in kept if adapter not in held][:count]
        self._leaving = {adapter: self._leaving[adapter] for adapter in (*late, *soon)}
        for adapter in self._slots:
            if len(self._leaving) >= len(late) + count:
                break
            if adapter not in pinned and adapter not in new:
                self._leaving.setdefault(adapter, now)

    def overdue(self, since: float) -> list[Adapter]:
        """The adapters that were chosen to leave at that time or earlier, and have not left."""
        return [adapter for adapter, chosen in self._leaving.items() if chosen <= since and adapter in self._slots]

    @property
    def worn_out(self) -> bool:
        """Whether some slot has no number left, so that only a new engine can take on more adapters."""
        return any(number + self._count + 1 >= self._most for number in self._numbers[1:])

    def number(self, adapter: Adapter) -> int:
        """The number that tags an adapter's prompts; KeyError where it has no slot."""
        return self._numbers[self._slots[adapter]]

    def leave(self, adapter: Adapter) -> None:
        """Free the slot of an adapter; its number is used up."""
        slot = self._slots.pop(adapter)
        self._numbers[slot] += self._count + 1
        self._free.append(slot)

    def take(self, adapter: Adapter, busy: Collection[Adapter], used: Mapping[Adapter, int]) -> int | None:
        """A slot for an adapter that has none: a free one, else that of the least recently used one that is not busy,
        and not pinned.

        `used` says when an adapter was last used, in any growing unit; those it lacks go first. None where all are
        busy.
        """
        if self.worn_out:
            return None
        if not self._free:
            pinned = self._keeping
            idle = [other for other in self._slots if other not in busy and other not in pinned]
            if not idle:
                return None
            self.leave(min(idle, key=lambda other: used.get(other, -1)))
        slot = self._free.pop()
        self._slots[adapter] = slot
        return slot
