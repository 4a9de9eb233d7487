"""The linker: a base with adapters, or with room for adapters, becomes a model folder that og.Engine runs as it is.

The weights of the base are hard-linked, never rewritten; what is written is the graph and, of stock operators, the bank
of adapters. Folders are kept in a cache and named by what went into them, so linking the same twice costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from onnx import helper

from loraplex.server.bundle import sha256
from loraplex.server.engine import fused
from loraplex.server.engine.bank import AdapterWeights, Matrix
from loraplex.server.engine.branches import add_branches, find_linears, sort_nodes, strip_lora_inputs
from loraplex.server.engine.folder_cache import Held, make
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.routing import Routing, most_slots
from loraplex.server.engine.row_graph import load_graph
from loraplex.server.errors import BundleInvalid

VERSION = 3
"""Counts the changes to what the linker writes, so that older folders of the cache are not taken for its own."""
MODEL = "model.onnx"
CONFIG = "genai_config.json"
BANK = "bank.data"
_LOCATION = re.compile(r"(\.\./[A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""A weight file of this folder or of one beside it."""
_PAGE = 4096
_INLINE = 1024
"""Constants of fewer bytes stay in the graph, where onnxruntime can read shapes and scalars."""


@dataclass(frozen=True)
class Linked:
    """A routed model: its folder, and what `routing.tag` needs to know of its graph."""

    folder: Path
    vocab_size: int
    count: int
    """Slots."""
    layout: Layout | None = None
    """Room for adapters, where the graph has the fused operator and no adapter is part of it."""
    held: Held | None = field(default=None, compare=False)
    """Keeps the folder in the cache."""


def link(base: Path, adapters: Sequence[Path], cache: Path) -> Linked:
    """Link adapters (`.onnx_adapter` files, checked for this base) to the graph in the folder `base`.

    The base is a PagedAttention graph, or a GroupQueryAttention graph with or without LoRA inputs. Slots, from 1 on,
    follow the order of `adapters`; branches are made of stock operators. Raises BundleInvalid or AdapterInvalid, and
    OSError where the cache cannot be written.
    """
    draft = _Draft(base)

    def add(target: Path) -> None:
        weights = [AdapterWeights(file) for file in adapters]
        with (target / BANK).open("wb") as stream:
            if not weights:
                return
            bank = _Bank(draft.graph, stream)
            linears = find_linears(draft.graph, draft.decoder)
            routing = Routing(draft.graph, draft.config, len(weights), bank.add)

            def store(name: str, values: Matrix) -> str:
                # An adapter file has one dtype, the variants of a base may differ: float32 on CPU, float16 on CUDA.
                return bank.add(name, values.astype(routing.dtype, copy=False))

            add_branches(draft.graph, linears, weights, routing.mask, store)

    held = draft.finish(cache, [sha256(file) for file in adapters], add)
    return Linked(held.folder, draft.vocab_size, len(adapters), held=held)


def link_slots(base: Path, ranks: Mapping[str, int], count: int, cache: Path, operator: Path) -> Linked:
    """Link room for `count` adapters of up to these ranks, by projection, to the paged float16 graph in `base`.

    `operator` is the compiled operator of `fused`. Raises as `link` does.
    """
    draft = _Draft(base)
    count = min(count, most_slots(draft.config), fused.MAX_SLOTS)
    layout = Layout.plan(find_linears(draft.graph, draft.decoder), ranks, count)

    def add(target: Path) -> None:
        with (target / BANK).open("wb") as stream:
            linears = find_linears(draft.graph, draft.decoder)
            routing = Routing(draft.graph, draft.config, count, _Bank(draft.graph, stream).add)
            fused.add_branches(draft.model, linears, layout, routing.slots)
        share(operator, target / operator.name)
        draft.decoder["session_options"]["custom_ops_library"] = operator.name

    held = draft.finish(cache, [repr(layout), sha256(operator)], add)
    return Linked(held.folder, draft.vocab_size, count, layout, held)


def most_adapters(base: Path) -> int:
    """How many adapters can be linked to the graph in `base`. Raises BundleInvalid and OSError."""
    return min(most_slots(_read_config(base)), fused.MAX_SLOTS)


def takes_operator(base: Path) -> bool:
    """Whether the fused operator fits the graph in `base`. Raises BundleInvalid."""
    return fused.fits(load_graph(base / MODEL).graph)


def take_locations(base: Path, graph: onnx.GraphProto) -> dict[str, Path]:
    """The graph's weight files by name. Locations in the graph become bare names: linked folders have no subfolders.

    A paged variant finds its weights in the folder of the generator variant beside it, a place that onnxruntime
    itself refuses to read.
    """
    found: dict[str, Path] = {}
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if not _LOCATION.fullmatch(entry.value):
                raise BundleInvalid(f"{base / MODEL} takes weights from {entry.value}, which is not beside it")
            file = base / entry.value
            entry.value = file.name
            if found.setdefault(file.name, file) != file:
                raise BundleInvalid(f"{base / MODEL} takes weights from two files named {file.name}")
    for file in found.values():
        if not file.is_file():
            raise BundleInvalid(f"{base / MODEL} takes weights from {file}, which is missing")
    return found


def _read_config(base: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((base / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise BundleInvalid(f"{base / CONFIG} is not JSON: {error}") from None
    return config


class _Draft:
    """A base's graph on its way to a folder of the cache."""

    def __init__(self, base: Path) -> None:
        self.config = _read_config(base)
        self.decoder: dict[str, Any] = self.config["model"]["decoder"]
        self.vocab_size: int = self.config["model"]["vocab_size"]
        self.model = load_graph(base / MODEL)
        self.graph = self.model.graph
        weights = take_locations(base, self.graph)
        self._files = {file.name: file for file in sorted(base.iterdir()) if file.is_file()} | weights
        strip_lora_inputs(self.graph)
        give_all_logits(self.graph)

    def finish(self, cache: Path, content: Iterable[str], add: Callable[[Path], None]) -> Held:
        """The folder for this base and `content`, which `add` adds to graph and config, beside files of its own."""

        def fill(target: Path) -> None:
            add(target)
            sort_nodes(self.graph)
            onnx.save(self.model, target / MODEL)
            (target / CONFIG).write_text(json.dumps(self.config, indent=4), "utf-8")
            for name, file in self._files.items():
                if name not in (MODEL, CONFIG):
                    share(file, target / name)

        return make(cache, self._key(content), fill)

    def _key(self, content: Iterable[str]) -> str:
        """Digest of everything that goes into a linked folder; of the base's weights, their files' identity will do."""
        digest = hashlib.sha256(f"{VERSION}".encode())
        for file in self._files.values():
            status = file.stat()
            digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
        for part in content:
            digest.update(f"{part}\n".encode())
        return digest.hexdigest()[:32]


class _Bank:
    """Writes constants to the bank and names them in the graph."""

    def __init__(self, graph: onnx.GraphProto, stream: BinaryIO) -> None:
        self._graph = graph
        self._stream = stream

    def add(self, name: str, values: Matrix) -> str:
        tensor = self._graph.initializer.add(
            name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype)
        )
        if values.nbytes < _INLINE:
            tensor.raw_data = values.tobytes()
            return name
        offset = -(-self._stream.tell() // _PAGE) * _PAGE
        self._stream.seek(offset)
        values.tofile(self._stream)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", BANK), ("offset", str(offset)), ("length", str(values.nbytes))):
            tensor.external_data.add(key=key, value=value)
        return name


def give_all_logits(graph: onnx.GraphProto) -> None:
    """Undo the pruning of a GroupQueryAttention graph's logits to the last position.

    The static engine reads the logits of every position, since the rows of its batch end at different ones. A paged
    graph selects its rows by an input instead, and stays as it is.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name == "/lm_head/prune/Unsqueeze":
            source, pruned = producers[node.input[0]].input[0], node.output[0]
            for reader in graph.node:
                reader.input[:] = [source if name == pruned else name for name in reader.input]
            logits = next(value for value in graph.output if value.name == "logits")
            logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
            del graph.value_info[:]
            graph.node.remove(producers[node.input[0]])
            graph.node.remove(node)
            return


def share(file: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system does not give it one."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy2(file, target)
