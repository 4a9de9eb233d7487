"""Branches of the fused operator: two kernel launches instead of five, the first beside the linear layer.

The operator is `kernels/lora.cu`, compiled for the GPU at hand. It holds the adapters' weights itself, in slots that
are written while the model stays loaded, so what is linked is room for adapters, not adapters. Where a layer of gate
and up is followed by SiLU and their product, which are three launches more, the operator does that as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from loraplex.server.engine.bank import ALIGNMENT, AdapterWeights
from loraplex.server.engine.branches import Linear

DOMAIN = "loraplex"
MAX_SLOTS = 2047
"""Slots travel as float16, which counts to 2048 without gaps."""


@dataclass(frozen=True)
class Branch:
    """Room beside one linear layer: for `ranks` ranks of each of its projections, given with their out_features."""

    projections: dict[str, int]
    inputs: int
    ranks: int

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """A [modules * ranks, in_features] and B [ranks, out_features]."""
        return (len(self.projections) * self.ranks, self.inputs), (self.ranks, sum(self.projections.values()))


@dataclass(frozen=True)
class Layout:
    """Room for `slots` adapters in a graph. Projections that no branch names have none."""

    slots: int
    branches: tuple[Branch, ...]

    @classmethod
    def plan(cls, linears: Iterable[Linear], ranks: Mapping[str, int], slots: int) -> Layout:
        """Room for adapters of up to these ranks by projection; layers with none of them get no branch."""
        branches = (
            Branch(linear.projections, linear.inputs, -(-rank // ALIGNMENT) * ALIGNMENT)
            for linear in linears
            if (rank := max(ranks.get(projection, 0) for projection in linear.projections))
        )
        return cls(slots, tuple(branches))

    def holds(self, ranks: Mapping[str, int]) -> bool:
        """Whether there is room for an adapter of these ranks by projection."""
        room = {projection: branch.ranks for branch in self.branches for projection in branch.projections}
        return all(rank <= room.get(projection, 0) for projection, rank in ranks.items())

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return sum(2 * rows * columns for branch in self.branches for rows, columns in branch.shapes)

    def pack(self, adapter: AdapterWeights, packed: npt.NDArray[np.float16]) -> None:
        """Write an adapter as the operator takes it, A and B of one branch after the other, what is not its own zero.

        `packed` has room for `slot_bytes`.
        """
        packed[:] = 0
        start = 0
        for branch in self.branches:
            parts = []
            for shape in branch.shapes:
                parts.append(packed[start : start + shape[0] * shape[1]].reshape(shape))
                start += shape[0] * shape[1]
            down, up = parts
            column = 0
            for module, (projection, width) in enumerate(branch.projections.items()):
                if pair := adapter.find(projection):
                    a, b = pair
                    rank = a.shape[1]
                    down[module * branch.ranks : module * branch.ranks + rank] = a.T
                    up[:rank, column : column + width] = b
                column += width


def largest_ranks(ranks: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The largest rank by projection."""
    most: dict[str, int] = {}
    for each in ranks:
        for projection, rank in each.items():
            most[projection] = max(rank, most.get(projection, 0))
    return most


def fits(graph: onnx.GraphProto) -> bool:
    """Whether the operator takes this graph: CUDA's paged layout [tokens, features] and float16."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    paged = any(node.op_type == "PagedAttention" for node in graph.node)
    return paged and types.get("past_key_values.0.key") == onnx.TensorProto.FLOAT16


def add_branches(
    model: onnx.ModelProto, linears: Iterable[Linear], layout: Layout, slots: Callable[[str], str]
) -> None:
    """Put the branches of a layout beside their linear layers. Nodes are left unsorted.

    `slots` gives the name of the slots for rows as in a tensor.
    """
    graph = model.graph
    nodes = {next(iter(linear.projections)): linear.node for linear in linears}
    tiles: dict[str, str] = {}

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(operator, inputs, [output], output, domain=DOMAIN, slots=layout.slots, **attributes)
        graph.node.append(node)

    for index, branch in enumerate(layout.branches):
        first = next(iter(branch.projections))
        node, down = nodes[first], f"lora/{first}/down"
        source, output = node.input[0], node.output[0]
        node.output[0] = base = f"{output}/base"
        slot = slots(source)
        if slot not in tiles:
            tiles[slot] = f"{slot}/tiles"
            add("Cut", [slot], tiles[slot])
        gate = _gate(graph, output)
        if gate:
            output = gate[-1].output[0]
            for each in gate:
                graph.node.remove(each)
        ranks = len(branch.projections) * branch.ranks
        add("LoraDown", [source, tiles[slot]], down, in_features=branch.inputs, ranks=ranks, index=index)
        # After the linear layer's node and LoraDown's: of two that are ready onnxruntime takes the later one first, so
        # LoraDown, which runs on a stream of its own, begins with the linear layer and not behind it.
        add(
            "LoraUpGated" if gate else "LoraUp",
            [base, down, tiles[slot], source],
            output,
            widths=list(branch.projections.values()),
            ranks=branch.ranks,
            index=index,
        )
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _gate(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes that make silu(gate) * up of a layer's output, the last one last; none where it goes on otherwise."""

    def only(name: str, *operators: str) -> list[onnx.NodeProto]:
        """The readers of a tensor, if they are exactly these operators."""
        readers = [node for node in graph.node if name in node.input]
        return readers if [node.op_type for node in readers] == list(operators) else []

    if not (split := only(output, "Split")) or len(split[0].output) != 2 or len(split[0].input) != 1:
        return []
    gate, up = split[0].output
    if not (first := only(gate, "Sigmoid", "Mul")) or not (last := only(up, "Mul")):
        return []
    sigmoid, silu = first
    if set(silu.input) != {gate, sigmoid.output[0]} or set(last[0].input) != {silu.output[0], up}:
        return []
    inner = (*only(sigmoid.output[0], "Mul"), *only(silu.output[0], "Mul"))
    return [*split, *first, *last] if len(inner) == 2 else []
