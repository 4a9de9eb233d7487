"""Loads of adapters on their way out: unloaded when the last request that uses them ends, and then deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from loraplex.server.model import Adapter
from loraplex.server.store import Store

PATIENCE = 5.0
"""Seconds that a request which replaces or unloads something waits for it to be gone. An engine in the middle of a long
step answers late."""


class Departures:
    """Used from one event loop."""

    def __init__(
        self, store: Store, unload: Callable[[str], Awaitable[None]], on_departure: Callable[[str], None]
    ) -> None:
        """`unload` tells the engine of an adapter, and is done when the engine does not read its folder any more.
        `on_departure` gets the name of one that no request uses any more.
        """
        self._store = store
        self._unload = unload
        self._on_departure = on_departure
        self._draining: list[Adapter] = []
        self._leaving: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Adapter]:
        """Those that requests still use."""
        return iter(self._draining)

    def add(self, adapter: Adapter) -> None:
        """Unload an adapter once no request uses it any more, which may be at once."""
        adapter.state = "draining"
        self._draining.append(adapter)
        self.check(adapter)

    def check(self, adapter: Adapter) -> None:
        """Whether it can go now: a request that used it has ended."""
        if adapter.users == 0 and adapter in self._draining:
            self._draining.remove(adapter)
            self.discard(adapter.model.adapter if adapter.model else None, adapter.folder)
            self._on_departure(adapter.name)

    def discard(self, engine_name: str | None, folder: Path) -> None:
        """Unload what the engine calls `engine_name`, None where it has not heard of it, and delete its copy."""
        unloaded = None if engine_name is None else self._unload(engine_name)
        task = asyncio.create_task(self._delete(unloaded, folder), name=f"delete {folder.name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def settle(self) -> None:
        """Wait until all that can go is gone, but not for longer than PATIENCE."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=PATIENCE)

    async def _delete(self, unloaded: Awaitable[None] | None, folder: Path) -> None:
        if unloaded is not None:
            await unloaded
        await asyncio.to_thread(self._store.drop, folder)
