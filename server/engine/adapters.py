"""The adapters of the engine, on the API process's side: they outlive the process that has them loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.connection import Connection
from loraplex.server.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    Command,
    LoadAdapter,
    PinAdapter,
    UnloadAdapter,
)
from loraplex.server.errors import AdapterInvalid, BundleInvalid, LoraplexError

logger = logging.getLogger("loraplex.engine")


class EngineAdapters:
    """Loads, pins and unloads, and does the same again with a process that is started in the place of another."""

    def __init__(self, send: Callable[[Command], None], on_lost: Callable[[str, str], None]) -> None:
        """`send` reaches the process while it is ready; `on_lost` gets name and reason of what it cannot load again."""
        self._send = send
        self._on_lost = on_lost
        self._folders: dict[str, Path] = {}
        self._pinned: set[str] = set()
        self._loading: dict[str, asyncio.Future[AdapterManifest]] = {}
        self._unloading: dict[str, asyncio.Future[None]] = {}

    @property
    def waiting(self) -> bool:
        """The process has a load or an unload to answer."""
        return bool(self._loading or self._unloading)

    async def load(self, name: str, folder: Path) -> AdapterManifest:
        """Raises AdapterInvalid, or what `fail` is given."""
        loading = self._loading[name] = asyncio.get_running_loop().create_future()
        try:
            self._send(LoadAdapter(name, str(folder)))
            manifest: AdapterManifest = await loading
        finally:
            self._loading.pop(name, None)
        self._folders[name] = folder
        return manifest

    def pin(self, name: str, pinned: bool) -> None:
        if pinned != (name in self._pinned):
            (self._pinned.add if pinned else self._pinned.discard)(name)
            self._send(PinAdapter(name, pinned))

    def unload(self, name: str) -> asyncio.Future[None]:
        """Done when the process does not read the adapter's folder any more, or is gone."""
        if name in self._unloading:
            return self._unloading[name]
        self._folders.pop(name, None)
        self._pinned.discard(name)
        unloading = self._unloading[name] = asyncio.get_running_loop().create_future()
        self._send(UnloadAdapter(name))
        return unloading

    def take(self, report: AdapterLoaded | AdapterRefused | AdapterUnloaded) -> None:
        """What the process says of one."""
        if isinstance(report, AdapterUnloaded):
            if (unloading := self._unloading.pop(report.name, None)) and not unloading.done():
                unloading.set_result(None)
        elif (loading := self._loading.get(report.name)) and not loading.done():
            if isinstance(report, AdapterLoaded):
                loading.set_result(report.manifest)
            else:
                loading.set_exception(AdapterInvalid(report.message))

    def fail(self, error: LoraplexError) -> None:
        """End the loads that are under way."""
        for loading in self._loading.values():
            if not loading.done():
                loading.set_exception(error)

    def let_go(self) -> None:
        """The process is gone, and reads nothing any more."""
        for unloading in self._unloading.values():
            if not unloading.done():
                unloading.set_result(None)
        self._unloading.clear()

    async def load_again(self, connection: Connection) -> None:
        """Bring a fresh process to where the last one was. Raises BundleInvalid if it dies of it."""
        folders = dict(self._folders)
        for name, folder in folders.items():
            connection.send(LoadAdapter(name, str(folder)))
        for _ in folders:
            match await connection.receive():
                case AdapterLoaded():
                    pass
                case AdapterRefused(name, message):
                    logger.error("adapter %r could not be loaded again: %s", name, message)
                    self._folders.pop(name, None)
                    self._pinned.discard(name)
                    self._on_lost(name, message)
                case _:
                    raise BundleInvalid("the engine process ended while it loaded the adapters")
        for name in self._unloading:  # some of them may just have been loaded
            connection.send(UnloadAdapter(name))
        for name in self._pinned:
            connection.send(PinAdapter(name, True))
