"""The linear layers of a decoder graph, and the LoRA branches put beside them.

Graphs are those of onnxruntime-genai's model builder, with or without the LoRA inputs that bundles add to their
generator variant. A branch is `y_i = W_i x + B_i (mask * (A x))` for every linear layer i that reads the same x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from loraplex.server.engine.bank import AdapterWeights, Matrix, merge
from loraplex.server.errors import BundleInvalid

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+_proj)/MatMul(?:NBits|_Q\d+)?")
_LORA_NODE = re.compile(r"/lora(?:_[AB])?/(?:MatMul|Concat|Add)$")
_LORA_INPUT = re.compile(r"\.lora_[AB]\.weight$")


@dataclass(frozen=True)
class Linear:
    """A linear layer: its node and its projections in order, with their out_features."""

    node: onnx.NodeProto
    inputs: int
    """in_features."""
    projections: dict[str, int]


def strip_lora_inputs(graph: onnx.GraphProto) -> None:
    """Take a graph's LoRA inputs out again, so that it computes the base alone."""
    for values in (graph.input, graph.initializer):
        keep = [value for value in values if not _LORA_INPUT.search(value.name)]
        del values[:]
        values.extend(keep)
    # A layer's own output is the first operand of the Add that stands for it in the rest of the graph.
    renamed = {node.input[0]: node.output[0] for node in graph.node if node.name.endswith("/lora/Add")}
    nodes = [node for node in graph.node if not _LORA_NODE.search(node.name)]
    for node in nodes:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del graph.node[:]
    graph.node.extend(nodes)


def find_linears(graph: onnx.GraphProto, decoder: Mapping[str, int]) -> list[Linear]:
    """The linear layers of all decoder layers. Raises BundleInvalid where one cannot carry a branch."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if not (match := _LINEAR.fullmatch(node.name)):
            continue
        layer, block, name = match.groups()
        if node.op_type == "MatMul" and node.input[1] in weights:
            rows, columns = weights[node.input[1]].dims
        elif node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            rows, columns = sizes["K"], sizes["N"]
        else:
            raise BundleInvalid(f"{node.name} is a {node.op_type}, beside which no adapter can be linked")
        modules = PACKED.get(name, (name,))
        widths: tuple[int, ...] = (columns // len(modules),) * len(modules)
        if name == "qkv_proj":
            kv = decoder["num_key_value_heads"] * decoder["head_size"]
            widths = (columns - 2 * kv, kv, kv)
        projections = {f"{layer}.{block}.{module}": width for module, width in zip(modules, widths, strict=True)}
        found.append(Linear(node, rows, projections))
    return found


def add_branches(
    graph: onnx.GraphProto,
    linears: Iterable[Linear],
    adapters: Sequence[AdapterWeights],
    mask: Callable[[tuple[int, ...], str], str],
    constant: Callable[[str, Matrix], str],
) -> None:
    """Put a branch beside every group of linear layers that any adapter touches. Nodes are left unsorted.

    `mask` gives the name of the mask for the owners of a branch's columns, for rows as in the tensor named second.
    `constant` stores a matrix under a name, in the dtype of the graph's activations, and returns the name.
    """
    sharing: dict[str, list[Linear]] = {}
    for linear in linears:
        sharing.setdefault(linear.node.input[0], []).append(linear)
    for source, members in sharing.items():
        merged = merge([linear.projections for linear in members], adapters)
        if merged is None:
            continue
        name = "lora/" + next(iter(members[0].projections))
        down, own = f"{name}/down", f"{name}/own"
        weight = constant(f"{name}/A", merged.down)
        graph.node.append(helper.make_node("MatMul", [source, weight], [down], down))
        graph.node.append(helper.make_node("Mul", [down, mask(merged.owners, source)], [own], own))
        for linear, matrix in zip(members, merged.ups, strict=True):
            if matrix is None:
                continue
            output = linear.node.output[0]
            base, up = f"{output}/base", f"{output}/up"
            linear.node.output[0] = base
            weight = constant(f"lora/{next(iter(linear.projections))}/B", matrix)
            graph.node.append(helper.make_node("MatMul", [own, weight], [up], up))
            graph.node.append(helper.make_node("Add", [up, base], [output], f"{output}/add"))


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes into an order in which each follows those it reads from, which ONNX requires."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    nodes = list(graph.node)
    placed: list[onnx.NodeProto] = []
    done: set[int] = set()
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            index = stack[-1]
            if index in done:
                stack.pop()
                continue
            needed = {producers[name] for name in nodes[index].input if name in producers} - done
            if needed:
                stack.extend(sorted(needed, reverse=True))
            else:
                stack.pop()
                done.add(index)
                placed.append(nodes[index])
    del graph.node[:]
    graph.node.extend(placed)
