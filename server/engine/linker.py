"""The linker: a base and some adapters become one model folder that og.Engine runs as it is.

The weights of the base are hard-linked, never rewritten; what is written is the graph and the bank of adapters.
Folders are kept in a cache and named by what went into them, so linking the same set twice costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from onnx import helper

from loraplex.server.bundle import sha256
from loraplex.server.engine import fused
from loraplex.server.engine.bank import AdapterWeights, Matrix
from loraplex.server.engine.branches import add_branches, find_linears, sort_nodes, strip_lora_inputs
from loraplex.server.engine.routing import Routing
from loraplex.server.errors import BundleInvalid

VERSION = 1
"""Counts the changes to what the linker writes, so that older folders of the cache are not taken for its own."""
MODEL = "model.onnx"
CONFIG = "genai_config.json"
BANK = "bank.data"
_PAGE = 4096
_INLINE = 1024
"""Constants of fewer bytes stay in the graph, where onnxruntime can read shapes and scalars."""


@dataclass(frozen=True)
class Linked:
    """A routed model: its folder, and which adapter is in which slot, from 1 on."""

    folder: Path
    slots: dict[str, int]
    vocab_size: int

    def tag(self, prompt: list[int], adapter: str | None) -> list[int]:
        """The prompt with its first id turned into the adapter's tag; KeyError for an adapter that is not linked.

        The ids must lie below `vocab_size`: anything above would be another sequence's way of choosing an adapter.
        """
        if adapter is None:
            return prompt
        return [self.slots[adapter] * self.vocab_size + prompt[0], *prompt[1:]]


def link(base: Path, adapters: Mapping[str, Path], cache: Path, kernels: Path | None = None) -> Linked:
    """Link adapters (`.onnx_adapter` files by name, checked for this base) to the graph in the folder `base`.

    The base is a PagedAttention graph, or a GroupQueryAttention graph with or without LoRA inputs. Slots follow the
    order of `adapters`. `kernels` is the library of the fused operator (see `fused`), which only float16 paged graphs
    take; without it branches are made of stock operators. Raises BundleInvalid or AdapterInvalid, and OSError where
    the cache cannot be written.
    """
    slots = {name: slot for slot, name in enumerate(adapters, 1)}
    config: dict[str, Any] = json.loads((base / CONFIG).read_text("utf-8"))
    vocabulary: int = config["model"]["vocab_size"]
    if (len(slots) + 1) * vocabulary > 2**31:
        raise BundleInvalid(f"{len(slots)} adapters of a vocabulary of {vocabulary} do not fit into 32-bit token ids")
    folder = cache / _key(base, adapters, kernels)
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".link-", dir=cache))
        try:
            _write(base, [AdapterWeights(file) for file in adapters.values()], config, draft, kernels)
            draft.rename(folder)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            # Another process may have been faster.
            if not (isinstance(error, OSError) and folder.is_dir()):
                raise
    return Linked(folder, slots, vocabulary)


def trim(cache: Path, *, keep: Path, count: int = 4) -> None:
    """Delete all but the `count` latest linked folders of a cache, and never `keep`."""
    folders = [folder for folder in cache.iterdir() if folder.is_dir() and folder != keep and folder.name[0] != "."]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)[count:]:
        shutil.rmtree(folder, ignore_errors=True)


def _key(base: Path, adapters: Mapping[str, Path], kernels: Path | None) -> str:
    """Digest of everything that goes into a linked folder; of the base's weights, their files' identity will do."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    for file in sorted(base.iterdir()):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for path in (*adapters.values(), *([kernels] if kernels else [])):
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:32]


def _write(
    base: Path, adapters: list[AdapterWeights], config: dict[str, Any], target: Path, kernels: Path | None
) -> None:
    model = onnx.load(base / MODEL, load_external_data=False)
    graph = model.graph
    strip_lora_inputs(graph)
    _give_all_logits(graph)
    with (target / BANK).open("wb") as stream:
        if adapters:
            bank = _Bank(graph, stream)
            linears = find_linears(graph, config["model"]["decoder"])
            routing = Routing(graph, config, len(adapters), bank.add)
            dtype = routing.dtype

            def store(name: str, values: Matrix) -> str:
                # An adapter file has one dtype, the variants of a base may differ: float32 on CPU, float16 on CUDA.
                return bank.add(name, values.astype(dtype, copy=False))

            if kernels and fused.fits(graph, dtype):
                fused.add_branches(model, linears, adapters, routing.slots, store)
                shutil.copy2(kernels, target / kernels.name)
                config["model"]["decoder"]["session_options"]["custom_ops_library"] = kernels.name
            else:
                add_branches(graph, linears, adapters, routing.mask, store)
    sort_nodes(graph)
    onnx.save(model, target / MODEL)
    (target / CONFIG).write_text(json.dumps(config, indent=4), "utf-8")
    for file in base.iterdir():
        if file.is_file() and file.name not in (MODEL, CONFIG):
            _share(file, target / file.name)


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


def _give_all_logits(graph: onnx.GraphProto) -> None:
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


def _share(file: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system does not give it one."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy2(file, target)
