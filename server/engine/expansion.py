"""A base's int4 weights expanded to float16: the same values, for steps of many rows.

MatMulNBits reads a quarter of the memory, which is what a step of few rows waits for. With more than 16 rows it
dequantizes the weights in every step and then multiplies, which is a quarter of such a step's time; a base whose
weights were dequantized beforehand saves that. The operator and its packing: onnxruntime, docs/ContribOperators.md,
com.microsoft.MatMulNBits.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper

from loraplex.server.engine.folder_cache import Held, discard, make, trim
from loraplex.server.engine.linker import MODEL, share, take_locations
from loraplex.server.engine.row_graph import load_graph
from loraplex.server.errors import BundleInvalid
from loraplex.server.machine import usable_cores

logger = logging.getLogger("loraplex.routed")

VERSION = 1
DATA = "float16.data"
_PAGE = 4096
_BITS = (4, 8)


def expanded_bytes(base: Path) -> int:
    """Size of the base's linear layers in float16; 0 where none is quantized or the graph computes otherwise.

    Raises BundleInvalid.
    """
    graph = load_graph(base / MODEL).graph
    if not any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in graph.input):
        return 0
    sizes = [_attributes(node) for node in graph.node if node.op_type == "MatMulNBits"]
    return sum(2 * size["K"] * size["N"] for size in sizes)


def expand(base: Path, cache: Path) -> Held:
    """A folder of the cache with the base in `base`, its quantized linear layers expanded to float16.

    One that is there is taken unless it is damaged, as far as sizes and the graph tell: nobody reads gigabytes again to
    see whether they are what was written. Folders of other bases that nobody uses are deleted, but for the latest.

    Raises BundleInvalid for a layer that is quantized in a way this does not know, OSError where the cache cannot be
    written.
    """
    model = load_graph(base / MODEL)
    files = {file.name: file for file in sorted(base.iterdir()) if file.is_file()} | take_locations(base, model.graph)
    digest = hashlib.sha256(f"{VERSION}".encode())
    for file in files.values():
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    key, shared = digest.hexdigest()[:32], {name: file for name, file in files.items() if name != MODEL}
    layers = sum(node.op_type == "MatMulNBits" for node in model.graph.node)

    def fill(target: Path) -> None:
        start, expanded = time.monotonic(), onnx.ModelProto()
        expanded.CopyFrom(model)
        size = _expand_layers(expanded.graph, files, target / DATA)
        onnx.save(expanded, target / MODEL)
        for name, file in shared.items():
            share(file, target / name)
        logger.info("weights expanded to float16, %d MB, in %.1f s", size // 10**6, time.monotonic() - start)

    held = make(cache, key, fill)
    if not _is_whole(held.folder, shared, layers):
        logger.warning("the expanded weights in %s are damaged, they are expanded anew", held.folder)
        discard(held)
        del held  # so that its gigabytes can be deleted first
        held = make(cache, key, fill)
        if not _is_whole(held.folder, shared, layers):
            raise OSError(f"{held.folder} is damaged and cannot be deleted")
    trim(cache)
    return held


def _is_whole(folder: Path, shared: Mapping[str, Path], layers: int) -> bool:
    """Whether a folder has the files that `expand` puts there, and a graph with so many layers to read from them."""
    try:
        if any((folder / name).stat().st_size != file.stat().st_size for name, file in shared.items()):
            return False
        found = 0
        for tensor in load_graph(folder / MODEL).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            if place and (folder / place["location"]).stat().st_size < end:
                return False
            found += place.get("location") == DATA
        return found == layers
    except (OSError, ValueError, KeyError, BundleInvalid):
        return False


def _expand_layers(graph: onnx.GraphProto, files: dict[str, Path], data: Path) -> int:
    """Replace every MatMulNBits by a MatMul; the weights' bytes, written to `data`."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    stored = {name: np.memmap(file, np.uint8, "r") for name, file in files.items() if file.suffix == ".data"}
    layers = [node for node in graph.node if node.op_type == "MatMulNBits"]
    for node in layers:
        if _attributes(node)["bits"] not in _BITS or any(node.input[4:]):
            raise BundleInvalid(f"{node.name} is quantized in a way that cannot be expanded: use --weights int4")
    offset, places = 0, []
    for node in layers:
        places.append(offset)
        sizes = _attributes(node)
        offset += -(-2 * sizes["K"] * sizes["N"] // _PAGE) * _PAGE
    with data.open("wb") as stream:
        stream.truncate(offset)
        if sys.platform == "linux":  # where a write to a map that finds the disk full would end the process
            os.posix_fallocate(stream.fileno(), 0, offset)
    whole = np.memmap(data, np.uint8, "r+", shape=(offset,))

    def write(node: onnx.NodeProto, place: int) -> None:
        sizes = _attributes(node)
        inputs, outputs = sizes["K"], sizes["N"]
        packed, scales = (_read(tensors[name], stored) for name in node.input[1:3])
        zeros = _read(tensors[node.input[3]], stored) if len(node.input) > 3 and node.input[3] else None
        target = whole[place : place + 2 * inputs * outputs].view(np.float16).reshape(inputs, outputs)
        rows = max(1, 2**22 // inputs)
        for first in range(0, outputs, rows):
            part = slice(first, min(first + rows, outputs))
            target[:, part] = dequantize(packed, scales, zeros, sizes, part).T

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(write, layers, places))
    whole.flush()
    used: set[str] = set()
    for node, place in zip(layers, places, strict=True):
        used.update(node.input[1:])
        sizes = _attributes(node)
        shape = sizes["K"], sizes["N"]
        tensor = graph.initializer.add(name=f"{node.name}/float16", dims=shape, data_type=onnx.TensorProto.FLOAT16)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        length = 2 * shape[0] * shape[1]
        for key, value in (("location", DATA), ("offset", str(place)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        node.op_type, node.domain = "MatMul", ""
        node.input[:] = [node.input[0], tensor.name]
        del node.attribute[:]
    keep = [tensor for tensor in graph.initializer if tensor.name not in used]
    del graph.initializer[:]
    graph.initializer.extend(keep)
    return offset


def dequantize(
    packed: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    zeros: npt.NDArray[Any] | None,
    sizes: dict[str, int],
    part: slice,
) -> npt.NDArray[np.float16]:
    """Rows `part` of a weight [N, K] from MatMulNBits' inputs, flat or not, and attributes, computed in float32."""
    bits, inputs, group = sizes["bits"], sizes["K"], sizes["block_size"]
    blocks = -(-inputs // group)
    rows = part.stop - part.start
    values = _unpack(packed.reshape(sizes["N"], -1)[part], bits).reshape(rows, blocks, group)
    if zeros is None:
        offset: npt.NDArray[Any] = np.full((1, 1), 2 ** (bits - 1), np.uint8)
    elif zeros.dtype == np.uint8:
        offset = _unpack(zeros.reshape(sizes["N"], -1)[part], bits)[:, :blocks]
    else:
        offset = zeros.reshape(sizes["N"], -1)[part]
    scale = scales.reshape(sizes["N"], -1)[part].astype(np.float32)
    found = (values - offset[..., None].astype(np.float32)) * scale[..., None]
    return found.reshape(rows, -1)[:, :inputs].astype(np.float16)


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Numbers of 4 or 8 bits, the lower half of a byte first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {"bits": 4} | {attribute.name: int(attribute.i) for attribute in node.attribute}


def _read(tensor: onnx.TensorProto, stored: dict[str, Any]) -> npt.NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    start, length = int(entries.get("offset", 0)), int(entries["length"])
    raw: npt.NDArray[np.uint8] = stored[entries["location"]][start : start + length]
    return raw.view(dtype)
