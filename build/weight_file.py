"""One weight file for the variants of a base: each tensor is stored once, whichever graphs read it.

The file lies in the folder of the first graph, which onnxruntime loads as it is. The other graphs name it by a path
that leads there (`../generator/model.onnx.data`); onnxruntime reads nothing outside a model's folder, so they are only
loaded by way of the linker, which writes a graph of its own anyway. A hard link in each folder would need no linker,
but zip files, hubs, git and `cp -r` all make two files of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx

from loraplex.build.builder import DATA, MODEL
from loraplex.build.errors import ExportFailed

_ALIGNMENT = 4096
"""Bytes; a page, so that weights can be mapped."""
_SMALL = 4096
"""Tensors of fewer bytes are aligned by 64 only."""
_BLOCK = 1 << 24


@dataclass(frozen=True)
class SharedBytes:
    """Sizes in bytes: of the tensors that all graphs read, and of those that only one of them does, by folder name."""

    shared: int
    alone: dict[str, int]


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes lie: `offset` and `length` in bytes."""

    file: Path
    offset: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            left = self.length
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise ExportFailed(f"{self.file} ends {left} bytes too early")
                left -= len(block)
                yield block


def find_stored(folder: Path, tensor: onnx.TensorProto) -> Stored | None:
    """Where an initializer of a folder's graph is stored; None where the graph itself holds it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries:
        return None
    return Stored(folder / entries["location"], int(entries.get("offset", 0)), int(entries["length"]))


def share_weights(folders: Sequence[Path]) -> SharedBytes:
    """Let the graphs of these folders, which lie beside each other, read from one file, in the first of them.

    Tensors are the same where their bytes are. Raises ExportFailed where a weight file is too short, and OSError.
    """
    owner = folders[0]
    models = {folder: onnx.load(folder / MODEL, load_external_data=False) for folder in folders}
    places: dict[bytes, int] = {}
    readers: dict[bytes, tuple[int, set[Path]]] = {}
    used = set[Path]()
    part = owner / f"{DATA}.part"
    with part.open("wb") as stream:
        for folder, model in models.items():
            location = DATA if folder == owner else f"../{owner.name}/{DATA}"
            for tensor in model.graph.initializer:
                if not (stored := find_stored(folder, tensor)):
                    continue
                used.add(stored.file)
                digest = _digest(stored)
                readers.setdefault(digest, (stored.length, set()))[1].add(folder)
                if digest not in places:
                    places[digest] = _append(stored, stream)
                del tensor.external_data[:]
                for key, value in (("location", location), ("offset", places[digest]), ("length", stored.length)):
                    tensor.external_data.add(key=key, value=str(value))
    for folder, model in models.items():
        onnx.save(model, folder / f"{MODEL}.part")
    for file in used:
        file.unlink()
    part.replace(owner / DATA)
    for folder in folders:
        (folder / f"{MODEL}.part").replace(folder / MODEL)
    return SharedBytes(
        shared=sum(length for length, by in readers.values() if len(by) == len(folders)),
        alone={folder.name: sum(length for length, by in readers.values() if by == {folder}) for folder in folders},
    )


def _digest(stored: Stored) -> bytes:
    digest = hashlib.sha256()
    for block in stored.blocks():
        digest.update(block)
    return digest.digest()


def _append(stored: Stored, stream: BinaryIO) -> int:
    """Copy a tensor to the end of a file and return the offset where it starts."""
    alignment = 64 if stored.length < _SMALL else _ALIGNMENT
    offset = -(-stream.tell() // alignment) * alignment
    stream.seek(offset)
    for block in stored.blocks():
        stream.write(block)
    return offset
