"""Adapters taken over at run time: a copy of each, which nobody overwrites under the engine that has it mapped.

STORE/
  adapters.json        what is loaded, by name; the part that survives a restart
  RANDOM/NAME/         one adapter, as in a bundle
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from loraplex.server.bundle import ADAPTER_MANIFEST, Name, inside, read_adapter_manifest
from loraplex.server.errors import AdapterInvalid, BundleInvalid, StateInvalid, StorageFailed

INDEX = "adapters.json"


class Kept(Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter of the index."""

    folder: str
    """Relative to the store."""
    source: str
    """Where it was taken from, for people."""


class Store:
    """Blocking: call from a thread. Nothing is half-done when it raises."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises StateInvalid where the folder holds something that is no store, or cannot be written."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._index: dict[str, Kept] = {}
        self._writing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / INDEX
            if path.is_file():
                self._index = msgspec.json.decode(path.read_bytes(), type=dict[Name, Kept])
            elif any(folder.iterdir()):
                raise StateInvalid(f"{folder} is not empty and has no {INDEX}: give another --state-dir")
            else:
                self._write({})
            kept = {self.folder(name).parent for name in self._index}
            for left in set(folder.iterdir()) - kept - {path}:
                shutil.rmtree(left, ignore_errors=True)  # of a load that was under way when a server was killed
        except (OSError, msgspec.DecodeError, BundleInvalid) as error:
            raise StateInvalid(f"{folder} cannot be used as --state-dir: {error}") from None

    @property
    def index(self) -> dict[str, Kept]:
        return dict(self._index)

    def folder(self, name: str) -> Path:
        """Folder of a kept adapter."""
        return inside(self._folder, self._index[name].folder)

    def take(self, name: str, source: Path) -> Path:
        """Copy the adapter in `source`, and nothing else that lies there; return the copy's folder.

        Raises AdapterInvalid and StorageFailed.
        """
        manifest = read_adapter_manifest(source)
        names = [ADAPTER_MANIFEST, manifest.file, *([manifest.chat_template] if manifest.chat_template else [])]
        try:
            files = [inside(source, each) for each in names]
        except BundleInvalid as error:
            raise AdapterInvalid(f"adapter {name!r}: {error.message}") from None
        for file in files:
            if not file.resolve().is_relative_to(source.resolve()):
                raise AdapterInvalid(f"adapter {name!r}: {file.name} is a link that leads out of {source}")
            if not file.is_file():
                raise AdapterInvalid(f"adapter {name!r}: there is no file {file.name} in {source}")
        if (size := sum(file.stat().st_size for file in files)) > self._max_bytes:
            raise AdapterInvalid(f"adapter {name!r} has {size} bytes, this server takes {self._max_bytes} at most")
        target = self._folder / secrets.token_hex(8) / name
        try:
            target.mkdir(parents=True)
            for file, relative in zip(files, names, strict=True):
                copy = inside(target, relative)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        except OSError as error:
            self.drop(target)
            raise StorageFailed(f"adapter {name!r} could not be stored: {error.strerror}") from None
        return target

    def keep(self, name: str, folder: Path, source: str) -> None:
        """Note an adapter that was taken, for the next start. Raises StorageFailed."""
        with self._writing:
            self._write({**self._index, name: Kept(folder.relative_to(self._folder).as_posix(), source)})

    def forget(self, name: str) -> None:
        """The opposite of `keep`. Raises StorageFailed."""
        with self._writing:
            if name in self._index:
                self._write({each: kept for each, kept in self._index.items() if each != name})

    def drop(self, folder: Path) -> None:
        """Delete an adapter that was taken."""
        if folder.is_relative_to(self._folder):
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _write(self, index: dict[str, Kept]) -> None:
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
            raise StorageFailed(f"{path} could not be written: {error.strerror}") from None
        self._index = index
