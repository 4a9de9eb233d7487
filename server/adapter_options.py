"""What operators set on adapters, by name, and what clients may call them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from loraplex.server.errors import InvalidRequest
from loraplex.server.options import Options
from loraplex.server.store import Store

logger = logging.getLogger("loraplex.registry")


class AdapterOptions:
    """Options by an adapter's name; whether there is such an adapter is for others to know."""

    def __init__(self, store: Store, base: str) -> None:
        """`store` keeps them for the next run; `base` is the base's name."""
        self._store = store
        self._base = base
        self._options: dict[str, Options] = {}

    def __getitem__(self, name: str) -> Options:
        return self._options.get(name, Options())

    def __setitem__(self, name: str, options: Options) -> None:
        self._options[name] = options

    def plain(self, name: str) -> str:
        """The name of a model that a client may also call BASE:NAME, or by an alias."""
        name = name.removeprefix(f"{self._base}:")
        return next((each for each, found in self._options.items() if name in found.aliases), name)

    @property
    def pinned(self) -> int:
        """How many adapters are."""
        return sum(found.pinned for found in self._options.values())

    def check_aliases(self, name: str, aliases: tuple[str, ...], names: Iterable[str]) -> None:
        """Whether an adapter may have these, where adapters have `names`. Raises InvalidRequest."""
        if len(set(aliases)) < len(aliases):
            raise InvalidRequest("aliases has a name twice", param="aliases")
        if clash := min(self._taken(name, names).intersection(aliases), default=None):
            raise InvalidRequest(f"{clash!r} is a model already", param="aliases")

    def recall(self, name: str, names: Iterable[str]) -> None:
        """Give an adapter the options of an earlier run, without aliases that others took while it was not there."""
        found = self._store.index.options.get(name)
        if found is None or name in self._options:
            return
        if gone := self._taken(name, names).intersection(found.aliases):
            logger.warning("%r is no longer called %s: others are", name, ", ".join(sorted(gone)))
        aliases = tuple(alias for alias in found.aliases if alias not in gone)
        self._options[name] = msgspec.structs.replace(found, aliases=aliases)

    def forget(self, name: str) -> None:
        """For this run; what the store keeps is not touched."""
        self._options.pop(name, None)

    def _taken(self, name: str, names: Iterable[str]) -> set[str]:
        """What an alias of this adapter cannot be."""
        others = (found.aliases for each, found in self._options.items() if each != name)
        return {self._base, *names}.union(*others)
