"""The watched folder of adapters: what appears there is loaded, what changes replaced, what disappears unloaded.

An adapter is taken over once it has looked the same twice, so that none is read while it is being copied there. What
the bundle has, or somebody loaded by a request, stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from loraplex.server.bundle import ADAPTER_MANIFEST
from loraplex.server.conversion import PEFT_CONFIG
from loraplex.server.errors import AdapterBusy, InvalidRequest, LoraplexError, StateInvalid
from loraplex.server.registry import Registry

logger = logging.getLogger("loraplex.adapters")

PERIOD = 1.0
"""Seconds between two looks."""

Look = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each file of an adapter."""


class AdapterDir:
    """Watches one folder for one registry; `watch` is its task."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder = folder
        self._registry = registry
        self._last: dict[str, Look] = {}
        self._done: dict[str, Look] = {}
        """How each adapter looked when it was taken over, or refused."""
        self._ours: set[str] = set()
        self._seeking: dict[str, asyncio.Task[None]] = {}

    async def load(self) -> None:
        """Take over everything that is there. Raises StateInvalid where there is no such folder."""
        try:
            found = await asyncio.to_thread(_look_into, self._folder)
        except OSError as error:
            raise StateInvalid(f"--adapter-dir {self._folder} cannot be read: {error.strerror}") from None
        for name, look in found.items():
            await self._take(name, look)

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._look()
            except OSError as error:
                logger.error("%s cannot be read: %s", self._folder, error)
            await asyncio.sleep(PERIOD)

    async def seek(self, name: str) -> None:
        """Load an adapter that was asked for and is not there yet, if the folder has it."""
        if name not in self._seeking:
            self._seeking[name] = asyncio.create_task(self._seek(name), name=f"seek {name}")
            self._seeking[name].add_done_callback(lambda _: self._seeking.pop(name, None))
        await asyncio.shield(self._seeking[name])

    async def _seek(self, name: str) -> None:
        try:
            self._registry.check_name(name)
        except InvalidRequest:
            return
        look = await asyncio.to_thread(_look_at, self._folder / name)
        if look and self._done.get(name) != look:
            await self._take(name, look)

    async def _look(self) -> None:
        found = await asyncio.to_thread(_look_into, self._folder)
        for name, look in found.items():
            if look == self._last.get(name) and look != self._done.get(name):
                await self._take(name, look)
        self._last = found
        for name in self._done.keys() - found.keys():
            del self._done[name]
            if name in self._ours and self._registry.options(name).pinned:
                logger.warning("%s is no longer in %s, but pinned: it stays", name, self._folder)
            elif name in self._ours:
                self._ours.remove(name)
                try:
                    await self._registry.unload(name)
                except LoraplexError as error:
                    logger.error("adapter %s cannot be unloaded: %s", name, error.message)

    async def _take(self, name: str, look: Look) -> None:
        if self._registry.is_loaded(name) and name not in self._ours:
            self._done[name] = look
            logger.warning("%s in %s is not loaded: there is an adapter of this name", name, self._folder)
            return
        try:
            await self._registry.load(name, self._folder / name, source=str(self._folder / name), keep=False)
            self._ours.add(name)
        except AdapterBusy:
            return  # next time
        except LoraplexError as error:
            logger.error("adapter refused: %s", error.message)
        self._done[name] = look


def _look_into(folder: Path) -> dict[str, Look]:
    looks = ((each.name, _look_at(each)) for each in sorted(folder.iterdir()))
    return {name: look for name, look in looks if look}


def _look_at(folder: Path) -> Look:
    """Empty where there is no adapter."""
    if not folder.is_dir() or folder.name.startswith(".") or folder.is_symlink():
        return ()
    try:
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    except OSError:  # it went while it was looked at
        return ()
    if not {ADAPTER_MANIFEST, PEFT_CONFIG} & {name for name, _ in files}:
        return ()
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)
