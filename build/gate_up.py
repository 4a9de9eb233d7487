"""Gate and up as one layer in graphs of AWQ checkpoints, for which the model builder cannot do it itself.

It can where it quantizes (`fuse_mlp_gate_up`), and packs q, k and v in either case. The layer's name and what follows
it are as the builder makes them there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import helper

from loraplex.build.builder import DATA, MODEL
from loraplex.build.errors import ExportFailed
from loraplex.build.weight_file import find_stored

_GATE = re.compile(r"/model/layers\.\d+/mlp/gate_proj/MatMulNBits")


def fuse_gate_up(folder: Path) -> None:
    """Rewrite model.onnx of an exported folder in place. The joined weights are appended to model.onnx.data.

    What they replace stays there as a gap until `weight_file.share_weights` writes the file anew. Raises ExportFailed
    where a gate has no up of the same form.
    """
    model = onnx.load(folder / MODEL, load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    dropped: set[str] = set()
    fused: dict[str, list[onnx.NodeProto]] = {}
    with (folder / DATA).open("ab") as stream:
        weights = _Weights(folder, model.graph, stream)
        for name, gate in nodes.items():
            if not _GATE.fullmatch(name):
                continue
            pair = _layer(nodes, gate.name), _layer(nodes, name.replace("gate_proj", "up_proj"))
            fused[name] = _join(*pair, weights)
            dropped |= {node.name for layer in pair for node in layer}
        weights.drop_joined()
    # The builder puts gate before up; both read what has been computed by then.
    kept = [each for node in model.graph.node for each in fused.get(node.name, [] if node.name in dropped else [node])]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, folder / MODEL)


def _layer(nodes: dict[str, onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """A linear layer's nodes: the MatMulNBits and the Add of its bias where it has one."""
    found = [nodes.get(name), nodes.get(name.replace("MatMulNBits", "Add"))]
    return [node for node in found if node is not None]


def _join(gate: list[onnx.NodeProto], up: list[onnx.NodeProto], weights: _Weights) -> list[onnx.NodeProto]:
    if (
        not up
        or len(gate) != len(up)
        or gate[0].input[0] != up[0].input[0]
        or list(gate[0].attribute) != list(up[0].attribute)
    ):
        raise ExportFailed(f"{gate[0].name} has no up_proj of the same form beside it")
    name = gate[0].name.replace("gate_proj", "gate_up_proj")
    inputs = [weights.join(pair) for pair in zip(gate[0].input[1:], up[0].input[1:], strict=True)]
    product = helper.make_node("MatMulNBits", [gate[0].input[0], *inputs], [f"{name}/output_0"], name)
    product.domain = gate[0].domain
    for attribute in gate[0].attribute:
        product.attribute.add().CopyFrom(attribute)
        if attribute.name == "N":
            product.attribute[-1].i *= 2
    joined = [product]
    if len(gate) > 1:
        name = name.replace("MatMulNBits", "Add")
        bias = weights.join((gate[1].input[1], up[1].input[1]))
        joined.append(helper.make_node("Add", [product.output[0], bias], [f"{name}/output_0"], name))
    outputs = [gate[-1].output[0], up[-1].output[0]]
    split = name.rpartition("/")[0] + "/Split"
    joined.append(helper.make_node("Split", [joined[-1].output[0]], outputs, split, axis=-1, num_outputs=2))
    return joined


class _Weights:
    """A graph's stored initializers, of which some are joined along their first dimension."""

    def __init__(self, folder: Path, graph: onnx.GraphProto, stream: BinaryIO) -> None:
        self._folder = folder
        self._graph = graph
        self._stream = stream
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._joined: set[str] = set()

    def join(self, names: Sequence[str]) -> str:
        """Append gate's bytes and up's to the weight file; return the name of the new tensor.

        Output features are the slowest dimension of all inputs of MatMulNBits.
        """
        tensors = [self._tensors[name] for name in names]
        offset = self._stream.tell()
        for tensor in tensors:
            if (stored := find_stored(self._folder, tensor)) is None:
                raise ExportFailed(f"{tensor.name} is not in {DATA}")
            for block in stored.blocks():
                self._stream.write(block)
        first = tensors[0]
        name = names[0].replace("gate_proj", "gate_up_proj")
        new = self._graph.initializer.add(
            name=name,
            data_type=first.data_type,
            dims=[2 * first.dims[0], *first.dims[1:]],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        length = self._stream.tell() - offset
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
            new.external_data.add(key=key, value=value)
        self._joined |= set(names)
        return name

    def drop_joined(self) -> None:
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in self._joined]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
