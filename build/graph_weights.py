"""The weights of a graph's linear layers, read back from what was written: no step of the export is trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from loraplex.build.builder import HEAD_NODE, MODEL
from loraplex.build.errors import ExportFailed
from loraplex.build.lora_inputs import PACKED
from loraplex.build.weight_file import find_stored

Matrix = npt.NDArray[np.float32]

_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul(?:NBits|_Q\d+)?")
_BLOCKS = {"attn": "self_attn", "mlp": "mlp"}


@dataclass(frozen=True)
class LinearWeight:
    """One linear layer: the names of the checkpoint's modules that it stands for, in order, and what it multiplies by.

    `weight` is [out_features, in_features], float32. `step` is the distance of two neighbouring values of an int4
    or int8 weight, [out_features, groups]; None where the graph holds floats. `group_size` is in weights.
    """

    node: str
    modules: tuple[str, ...]
    weight: Matrix
    step: Matrix | None
    group_size: int


def iterate_linears(folder: Path) -> Iterator[LinearWeight]:
    """The decoder's linear layers and the LM head of an exported folder, one after the other.

    Raises ExportFailed where a layer's weights cannot be read.
    """
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> npt.NDArray[np.generic]:
        return _read(folder, tensors[name])

    for node in graph.node:
        modules = _modules(node.name)
        if not modules:
            continue
        try:
            if node.op_type == "MatMul":
                # The builder stores [in_features, out_features].
                yield LinearWeight(node.name, modules, _float32(read(node.input[1])).T, None, 0)
            elif node.op_type == "MatMulNBits":
                yield _dequantize(node, modules, [read(name) for name in node.input[1:] if name])
        except (KeyError, ValueError) as error:
            raise ExportFailed(f"the weights of {node.name} cannot be read: {error}") from error


def _modules(node: str) -> tuple[str, ...]:
    if node.startswith(HEAD_NODE) and "/" not in node[len(HEAD_NODE) :]:
        return ("lm_head",)
    if not (match := _LINEAR.fullmatch(node)):
        return ()
    layer, block, name = match.groups()
    return tuple(f"model.layers.{layer}.{_BLOCKS[block]}.{part}" for part in PACKED.get(name, (name,)))


def _dequantize(node: onnx.NodeProto, modules: tuple[str, ...], inputs: list[npt.NDArray[np.generic]]) -> LinearWeight:
    """(q - zero) * scale, as onnxruntime documents MatMulNBits: low bits first, zero points packed likewise by row."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    rows, columns = attributes["N"], attributes["K"]
    bits, size = attributes.get("bits", 4), attributes["block_size"]
    groups = -(-columns // size)
    steps = _float32(inputs[1]).reshape(rows, groups)
    values = _unpack(inputs[0].reshape(rows, -1), bits).reshape(rows, groups, size).astype(np.float32)
    if len(inputs) > 2:
        values -= _unpack(inputs[2].reshape(rows, -1), bits)[:, :groups, None].astype(np.float32)
    else:
        values -= np.float32(1 << (bits - 1))
    values *= steps[:, :, None]
    return LinearWeight(node.name, modules, values.reshape(rows, -1)[:, :columns], steps, size)


def _unpack(packed: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.uint8]:
    values = packed.astype(np.uint8, copy=False)
    if bits == 8:
        return values
    if bits != 4:
        raise ValueError(f"{bits} bits")
    return np.stack([values & 15, values >> 4], axis=-1).reshape(values.shape[0], -1)


def _read(folder: Path, tensor: onnx.TensorProto) -> npt.NDArray[np.generic]:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if stored := find_stored(folder, tensor):
        flat = np.fromfile(stored.file, dtype, stored.length // dtype.itemsize, offset=stored.offset)
        return flat.reshape(tuple(tensor.dims))
    return onnx.numpy_helper.to_array(tensor)


def _float32(values: npt.NDArray[np.generic]) -> Matrix:
    return values.astype(np.float32, copy=False)
