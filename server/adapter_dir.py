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
from loraplex.server.errors import (
    AdapterBusy,
    EngineFailed,
    InvalidRequest,
    LoraplexError,
    NotReady,
    StateInvalid,
    StorageFailed,
)
from loraplex.server.model import Adapter
from loraplex.server.registry import Registry

logger = logging.getLogger("loraplex.adapters")

PERIOD = 1.0
"""Seconds between two looks."""
RETRY = 5.0
"""Seconds before another try after one that failed for want of room on the disk, or of file descriptors."""

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
        self._ours: dict[str, Adapter] = {}
        """What was loaded from here. A name may have come to stand for what somebody loaded by a request."""
        self._missed: set[str] = set()
        """Those of them whose folders are gone, but which are pinned."""
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._later: dict[str, float] = {}
        """When, in the loop's time, to try again what the disk had no room for."""
        self._suspects: dict[str, Look] = {}
        """How those look that the engine died with once: one of them may be what it dies of."""

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
        problem = ""
        while True:
            try:
                await self._look()
                problem = ""
            except OSError as error:
                if str(error) != problem:  # said once, not every second
                    logger.error("%s cannot be read: %s", self._folder, error)
                problem = str(error)
            await asyncio.sleep(PERIOD)

    async def close(self) -> None:
        """End what is under way."""
        taking = list(self._taking.values())
        for each in taking:
            each.cancel()
        await asyncio.gather(*taking, return_exceptions=True)

    async def seek(self, name: str) -> None:
        """Load an adapter that was asked for and is not there yet, if the folder has it."""
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
        self._missed -= found.keys()
        self._later = {name: at for name, at in self._later.items() if not self._is_time(name)}
        self._suspects = {name: look for name, look in self._suspects.items() if found.get(name) == look}
        for name in (self._done.keys() | self._ours.keys()) - found.keys():
            if await asyncio.to_thread(_look_at, self._folder / name):
                continue  # it came, and was asked for, since the look around
            self._done.pop(name, None)
            if name in self._ours:
                await self._lose(name)

    async def _lose(self, name: str) -> None:
        """Unload an adapter whose folder is gone, as soon as it is not pinned."""
        if not self._is_ours(name):
            del self._ours[name]
        elif self._registry.options[name].pinned:
            if name not in self._missed:
                logger.warning("%s is no longer in %s, but pinned: it stays until it is not", name, self._folder)
            self._missed.add(name)
        elif self._is_time(name):
            try:
                await self._registry.unload(name)
            except AdapterBusy:
                return  # next time
            except StorageFailed as error:
                self._put_off(name, f"adapter {name} cannot be unloaded: {error.message}")
                return
            except LoraplexError as error:
                logger.error("adapter %s cannot be unloaded: %s", name, error.message)
            self._missed.discard(name)
            self._ours.pop(name, None)

    def _is_ours(self, name: str) -> bool:
        """Whether what has this name now was loaded from here."""
        ours = self._ours.get(name)
        return ours is not None and ours.state != "draining" and any(ours is it for it in self._registry.adapters(name))

    async def _take(self, name: str, look: Look) -> None:
        """Load an adapter, or wait for that where it is under way."""
        if name not in self._taking:
            self._taking[name] = asyncio.create_task(self._load(name, look), name=f"take {name}")
            self._taking[name].add_done_callback(lambda _: self._taking.pop(name, None))
        await asyncio.shield(self._taking[name])

    async def _load(self, name: str, look: Look) -> None:
        if not self._is_time(name):
            return
        if self._registry.is_loaded(name) and not self._is_ours(name):
            if any(each.state == "loading" for each in self._registry.adapters(name)):
                return  # by a request, which may fail: next time
            self._done[name] = look
            logger.warning("%s in %s is not loaded: there is an adapter of this name", name, self._folder)
            return
        try:
            folder = self._folder / name
            self._ours[name] = await self._registry.load(name, folder, source=str(folder), keep=False)
        except (AdapterBusy, NotReady):
            return  # next time
        except StorageFailed as error:
            self._put_off(name, error.message)
            self._refuse(name, f"{error.message}; it is tried again every {RETRY:.0f} s")
            return
        except OSError as error:
            self._put_off(name, f"adapter {name} cannot be loaded: {error}")
            self._refuse(name, f"it cannot be read: {error.strerror}; it is tried again every {RETRY:.0f} s")
            return
        except InvalidRequest as error:  # no adapter can have this name
            logger.error("adapter refused: %s", error.message)
        except LoraplexError as error:
            logger.error("adapter refused: %s", error.message)
            self._refuse(name, error.message)
            if isinstance(error, EngineFailed) and self._suspects.get(name) != look:
                self._suspects[name] = look
                return  # once more
        except Exception:  # nobody foresaw: the others are looked after all the same
            logger.exception("adapter %s cannot be loaded", name)
            self._refuse(name, "it cannot be loaded; the server's log says why")
        self._done[name] = look

    def _refuse(self, name: str, reason: str) -> None:
        """Let those who ask for it learn why it is not there."""
        folder = self._folder / name
        if refused := self._registry.refuse(name, folder, source=str(folder), reason=reason):
            self._ours[name] = refused

    def _put_off(self, name: str, problem: str) -> None:
        logger.error("%s; trying again every %.0f s", problem, RETRY)
        self._later[name] = asyncio.get_running_loop().time() + RETRY

    def _is_time(self, name: str) -> bool:
        """Whether nothing that was to be done with this name has been put off."""
        return asyncio.get_running_loop().time() >= self._later.get(name, 0)


def _look_into(folder: Path) -> dict[str, Look]:
    looks = ((each.name, _look_at(each)) for each in sorted(folder.iterdir()))
    return {name: look for name, look in looks if look}


def _look_at(folder: Path) -> Look:
    """Empty where there is no adapter."""
    try:
        if not folder.is_dir() or folder.name.startswith(".") or folder.is_symlink():
            return ()
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    except OSError:  # it went while it was looked at
        return ()
    if not {ADAPTER_MANIFEST, PEFT_CONFIG} & {name for name, _ in files}:
        return ()
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)
