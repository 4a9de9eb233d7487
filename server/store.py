"""Adapters taken over at run time: a copy of each, which nobody overwrites under the engine that has it mapped.

STORE/
  adapters.json        what is loaded and what was set, by name; the part that survives a restart
  RANDOM/NAME/         one adapter, as in a bundle
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from loraplex.server.bundle import Name, inside
from loraplex.server.errors import AdapterInvalid, BundleInvalid, StateInvalid, StorageFailed
from loraplex.server.options import Options

if sys.platform != "win32":
    import fcntl

INDEX = "adapters.json"


class Kept(Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter of the index."""

    folder: str
    """Relative to the store."""
    source: str
    """Where it was taken from, for people."""


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """adapters.json."""

    adapters: dict[Name, Kept] = {}
    options: dict[Name, Options] = {}
    """Of any adapter, loaded at run time or not."""


class Store:
    """Blocking: call from a thread. Nothing is half-done when it raises."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises StateInvalid where the folder holds something that is no store, or cannot be written."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._index = Index()
        self._writing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            path = folder / INDEX
            if path.is_file():
                self._index = msgspec.json.decode(path.read_bytes(), type=Index)
            elif any(folder.iterdir()):
                raise StateInvalid(f"{folder} is not empty and has no {INDEX}: give another --state-dir")
            else:
                self._write(Index())
            kept = {self.folder(name).parent for name in self._index.adapters}
            for left in set(folder.iterdir()) - kept - {path}:
                # Of a load, or a change of the index, that was under way when a server was killed.
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, BundleInvalid, StorageFailed) as error:
            raise StateInvalid(f"{folder} cannot be used as --state-dir: {error}") from None

    @property
    def index(self) -> Index:
        return self._index

    def folder(self, name: str) -> Path:
        """Folder of a kept adapter."""
        return inside(self._folder, self._index.adapters[name].folder)

    def place(self, name: str) -> Path:
        """A folder to be made and filled with an adapter of this name. Raises StorageFailed."""
        folder = self._folder / secrets.token_hex(8)
        try:
            folder.mkdir()
        except OSError as error:
            raise StorageFailed(f"adapter {name!r} could not be stored: {error.strerror}") from None
        return folder / name

    def copy(self, name: str, source: Path, files: Sequence[str], target: Path) -> None:
        """Copy these files of a folder, and nothing else that lies there. Raises AdapterInvalid and StorageFailed."""
        try:
            paths = [inside(source, each) for each in files]
        except BundleInvalid as error:
            raise AdapterInvalid(f"adapter {name!r}: {error.message}") from None
        for path in paths:
            if not path.resolve().is_relative_to(source.resolve()):
                raise AdapterInvalid(f"adapter {name!r}: {path.name} is a link that leads out of its folder")
            if not path.is_file():
                raise AdapterInvalid(f"adapter {name!r}: there is no file {path.name}")
        if (size := sum(path.stat().st_size for path in paths)) > self._max_bytes:
            raise AdapterInvalid(f"adapter {name!r} has {size} bytes, this server takes {self._max_bytes} at most")
        try:
            for path, relative in zip(paths, files, strict=True):
                copy = inside(target, relative)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        except FileNotFoundError as error:
            raise AdapterInvalid(f"adapter {name!r}: {error.filename} vanished while it was copied") from None
        except OSError as error:
            raise StorageFailed(f"adapter {name!r} could not be stored: {error.strerror}") from None

    def keep(self, name: str, folder: Path, source: str) -> None:
        """Note an adapter that was taken, for the next start. Raises StorageFailed."""
        with self._writing:
            kept = Kept(folder.relative_to(self._folder).as_posix(), source)
            self._write(Index({**self._index.adapters, name: kept}, self._index.options))

    def forget(self, name: str) -> None:
        """The opposite of `keep` and of `set_options`. Raises StorageFailed."""
        with self._writing:
            adapters = {each: kept for each, kept in self._index.adapters.items() if each != name}
            options = {each: found for each, found in self._index.options.items() if each != name}
            if Index(adapters, options) != self._index:
                self._write(Index(adapters, options))

    def set_options(self, name: str, options: Options) -> None:
        """Note the options of an adapter, for the next start. Raises StorageFailed."""
        with self._writing:
            self._write(Index(self._index.adapters, {**self._index.options, name: options}))

    def close(self) -> None:
        """Let another server use the folder."""
        if self._lock is not None:
            os.close(self._lock)

    def drop(self, folder: Path) -> None:
        """Delete an adapter of this store; others, and those that are kept, are left alone."""
        with self._writing:
            kept = {self._folder / each.folder for each in self._index.adapters.values()}
        if folder.is_relative_to(self._folder) and folder not in kept:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _write(self, index: Index) -> None:
        path = self._folder / INDEX
        draft = path.with_suffix(".new")
        try:
            with draft.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StorageFailed(f"{INDEX} could not be written: {error.strerror}") from None
        self._index = index


def _lock(folder: Path) -> int | None:
    """A descriptor that keeps other servers from a folder, which each would tidy up after the other.

    None where the system has no such locks. Raises StateInvalid where another server has it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StateInvalid(f"--state-dir {folder} is used by another server: give each its own") from None
    except OSError:  # a file system without locks
        pass
    return descriptor
