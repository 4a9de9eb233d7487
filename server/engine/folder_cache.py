"""Folders of a cache, named by what went into them: made whole or not at all, and not deleted while they are used.

Several servers may share a cache, and one may be killed in the middle of something. So whoever makes or uses a folder
holds a lock on it, which the system takes back from a process that is gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":  # where a folder with open files cannot be deleted anyway
    import fcntl

_DRAFT = ".draft-"
_FRESH = 60.0
"""Seconds in which a draft may not be locked yet by who began it."""


class Held:
    """A folder in use, until this object is gone."""

    def __init__(self, folder: Path, lock: int | None) -> None:
        self.folder = folder
        self._lock = lock
        if lock is not None:
            weakref.finalize(self, os.close, lock)

    @property
    def is_there(self) -> bool:
        """Whether the folder of this name is still the one that is held. Raises OSError where there is none."""
        return self._lock is None or os.path.samestat(os.fstat(self._lock), self.folder.stat())


def make(cache: Path, key: str, fill: Callable[[Path], None]) -> Held:
    """The folder `key` of a cache; where there is none, a new one that `fill` has filled.

    Raises what `fill` does, and OSError where the cache cannot be written.
    """
    folder = cache / key
    if found := _hold(folder):
        with suppress(OSError):  # somebody else's, which may only be read
            os.utime(folder)
        return found
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    draft = _draft(cache)
    draft.mkdir()
    lock = _lock(draft)
    try:
        fill(draft)
        draft.rename(folder)
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)
        # Another process may have been faster.
        if isinstance(error, OSError) and (found := _hold(folder)):
            return found
        raise
    return Held(folder, lock)


def discard(held: Held) -> None:
    """Take a damaged folder out of the cache, so that `make` fills a new one. Whoever uses it goes on using it."""
    with suppress(OSError):
        if held.is_there:  # or another server has done it, and the name is that of a new one
            draft = held.folder.rename(_draft(held.folder.parent))
            os.utime(draft, (0, 0))  # nobody has yet to lock it


def trim(cache: Path, *, count: int = 4) -> None:
    """Delete all folders of a cache that nobody uses but the `count` latest."""
    ages: dict[Path, float] = {}
    with suppress(OSError):  # somebody deleted the cache: nothing is left to do
        _sweep(cache)
        for folder in cache.iterdir():
            with suppress(OSError):  # or another server this folder, just now
                if folder.is_dir() and folder.name[0] != ".":
                    ages[folder] = folder.stat().st_mtime
    for folder in sorted(ages, key=ages.__getitem__, reverse=True)[count:]:
        _delete(folder)


def _draft(cache: Path) -> Path:
    """A name under which nobody looks for a folder. None of tempfile's, which only their user may read."""
    return cache / (_DRAFT + secrets.token_hex(8))


def _sweep(cache: Path) -> None:
    """Delete what processes left behind that were killed."""
    for draft in cache.glob(f"{_DRAFT}*"):
        try:
            fresh = time.time() - draft.stat().st_mtime < _FRESH
        except OSError:  # just finished, or swept by another
            continue
        if not fresh:
            _delete(draft)


def _hold(folder: Path) -> Held | None:
    """None where there is no such folder, or it is being deleted."""
    try:
        lock = _lock(folder)
    except OSError:
        return None
    held = Held(folder, lock)
    try:
        # Between the descriptor and its lock it may have been deleted.
        return held if held.is_there else None
    except OSError:
        return None


def _delete(folder: Path) -> None:
    """Unless somebody uses it. Gets another name first, so that nobody finds half a folder."""
    try:
        lock = _lock(folder, alone=True)
    except OSError:
        return
    try:
        shutil.rmtree(folder.rename(_draft(folder.parent)), ignore_errors=True)
    except OSError:
        pass
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, alone: bool = False) -> int | None:
    """A descriptor that keeps a folder locked; None where the system has no such locks. Raises OSError."""
    if sys.platform == "win32":
        folder.stat()
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    return descriptor
