"""Branches of the fused operator: one node instead of four, two kernel launches instead of five.

The operator is `kernels/lora.cu`, compiled for the GPU at hand. It reads the weights of the adapters in use and nothing
else, so its layout has a block for each adapter instead of one wide matrix for all. Where a layer of gate and up is
followed by SiLU and their product, which are three launches more, the operator does that as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from loraplex.server.engine.bank import ALIGNMENT, AdapterWeights, Matrix
from loraplex.server.engine.branches import Linear

DOMAIN = "loraplex"
MAX_ADAPTERS = 2048
"""Slots travel as float16, which counts no further without gaps."""


def fits(graph: onnx.GraphProto, dtype: np.dtype[np.generic]) -> bool:
    """Whether the operator takes this graph: CUDA's paged layout [tokens, features] and float16."""
    return dtype == np.float16 and any(node.op_type == "PagedAttention" for node in graph.node)


def stack(projections: Mapping[str, int], adapters: Sequence[AdapterWeights]) -> tuple[Matrix, Matrix] | None:
    """A [adapters, modules * ranks, in_features] and B [adapters, ranks, out_features] of one linear layer.

    `ranks` is the largest of any adapter and module, rounded up to ALIGNMENT; what is beyond an adapter's own is zero.
    None where no adapter touches the layer.
    """
    found = {
        (index, module): pair
        for index, adapter in enumerate(adapters)
        for module, projection in enumerate(projections)
        if (pair := adapter.find(projection))
    }
    if not found:
        return None
    ranks = -(-max(a.shape[1] for a, _ in found.values()) // ALIGNMENT) * ALIGNMENT
    starts = np.cumsum([0, *projections.values()])
    rows = next(iter(found.values()))[0].shape[0]
    down = np.zeros((len(adapters), len(projections) * ranks, rows), np.float16)
    up = np.zeros((len(adapters), ranks, int(starts[-1])), np.float16)
    for (index, module), (a, b) in found.items():
        rank = a.shape[1]
        down[index, module * ranks : module * ranks + rank] = a.T
        up[index, :rank, starts[module] : starts[module + 1]] = b
    return down, up


def add_branches(
    model: onnx.ModelProto,
    linears: Iterable[Linear],
    adapters: Sequence[AdapterWeights],
    slots: Callable[[str], str],
    constant: Callable[[str, Matrix], str],
) -> None:
    """Put a branch beside every linear layer that any adapter touches. Nodes are left unsorted.

    `slots` gives the name of the slots for rows as in a tensor; `constant` stores a matrix and returns its name.
    """
    graph = model.graph
    orders: dict[str, list[str]] = {}
    for linear in linears:
        if (stacked := stack(linear.projections, adapters)) is None:
            continue
        name = "lora/" + next(iter(linear.projections))
        source, output = linear.node.input[0], linear.node.output[0]
        linear.node.output[0] = base = f"{output}/base"
        slot = slots(source)
        if slot not in orders:
            orders[slot] = [f"{slot}/order", f"{slot}/sorted"]
            graph.node.append(helper.make_node("Order", [slot], orders[slot], f"{slot}/Order", domain=DOMAIN))
        weights = [constant(f"{name}/{side}", matrix) for side, matrix in zip("AB", stacked, strict=True)]
        gate = _gate(graph, output)
        if gate:
            output = gate[-1].output[0]
            for node in gate:
                graph.node.remove(node)
        graph.node.append(
            helper.make_node(
                "LoraGated" if gate else "Lora",
                [source, base, *orders[slot], *weights],
                [output, f"{name}/scratch"],
                name,
                domain=DOMAIN,
                widths=list(linear.projections.values()),
            )
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
