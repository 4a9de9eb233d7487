"""4-bit linear layers and their LoRA branches as nodes of the operator in `kernels/linear.cpp`.

What has another form, a layer in float32, of 8 bits or of an odd width, stays as it is, with its LoRA inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from loraplex.server.engine.row_graph import LORA

ADAPTERS = "loraplex_adapters"
"""The graph input [rows]: addresses of the rows' adapter tables, 0 for the base."""
DOMAIN = "loraplex"
RUN = 32
"""Values along K that the operator takes at once; its block sizes are multiples of it."""
COLUMNS = 16
"""Columns that it takes at once."""


@dataclass(frozen=True)
class Layer:
    """A MatMulNBits node and its LoRA branch, which ends with `add`."""

    matmul: onnx.NodeProto
    branch: list[onnx.NodeProto]
    add: onnx.NodeProto
    base: str
    """Which input of `add` is the layer's own output."""
    projections: list[str]


def use_linear(model: onnx.ModelProto) -> list[list[str]]:
    """Put the operator where it fits; the projections of its nodes, in the order that an adapter's table has them."""
    graph = model.graph
    widths = {
        value.name.partition(LORA)[0]: value.type.tensor_type.shape.dim[-1].dim_value
        for value in graph.input
        if f"{LORA}B" in value.name
    }
    table: list[list[str]] = []
    dropped: set[str] = set()
    renamed: dict[str, str] = {}
    nodes: dict[str, onnx.NodeProto] = {}
    for layer in _layers(graph):
        attributes = {attribute.name: attribute.i for attribute in layer.matmul.attribute}
        of_layer = [widths[projection] for projection in layer.projections]
        if not _fits(layer.matmul, attributes, of_layer):
            continue
        inputs = [layer.matmul.input[0], ADAPTERS, *layer.matmul.input[1:4]]
        nodes[layer.matmul.output[0]] = helper.make_node(
            "Linear",
            inputs,
            list(layer.matmul.output),
            layer.matmul.name,
            domain=DOMAIN,
            K=attributes["K"],
            N=attributes["N"],
            block_size=attributes["block_size"],
            zero_points=int(len(inputs) > 4 and bool(inputs[4])),
            first=sum(map(len, table)),
            widths=of_layer,
        )
        table.append(layer.projections)
        dropped |= {node.output[0] for node in (*layer.branch, layer.add)}
        renamed[layer.add.output[0]] = layer.base
    if table:
        _rewrite(model, nodes, dropped, renamed)
    return table


def _layers(graph: onnx.GraphProto) -> Iterator[Layer]:
    producers = {output: node for node in graph.node for output in node.output}
    for add in graph.node:
        if add.op_type != "Add" or len(add.input) != 2:
            continue
        for base, delta in (add.input, reversed(add.input)):
            last = producers.get(delta)
            ups = [producers.get(name) for name in last.input] if last and last.op_type == "Concat" else [last]
            if not all(up and up.op_type == "MatMul" and f"{LORA}B" in up.input[1] for up in ups):
                continue
            matmul = producers.get(base)
            while matmul and matmul.op_type == "Add":  # of a bias
                matmul = producers.get(matmul.input[0])
            found = [up for up in ups if up]
            if matmul and matmul.op_type == "MatMulNBits":
                branch = [*found, *(producers[up.input[0]] for up in found)]
                if last and last.op_type == "Concat":
                    branch.append(last)
                yield Layer(matmul, branch, add, base, [up.input[1].partition(LORA)[0] for up in found])


def _fits(node: onnx.NodeProto, attributes: dict[str, int], widths: list[int]) -> bool:
    return (
        attributes.get("bits", 4) == 4
        and attributes["block_size"] % RUN == 0
        and attributes["K"] % attributes["block_size"] == 0
        and sum(widths) == attributes["N"]
        and not any(width % COLUMNS for width in widths)
        and not any(node.input[4:])  # a permutation or a bias
    )


def _rewrite(
    model: onnx.ModelProto, nodes: dict[str, onnx.NodeProto], dropped: set[str], renamed: dict[str, str]
) -> None:
    graph = model.graph
    kept = [nodes.get(node.output[0], node) for node in graph.node if node.output[0] not in dropped]
    for node in kept:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
    used = {name for node in kept for name in node.input}
    inputs = [value for value in graph.input if LORA not in value.name or value.name in used]
    inputs.append(helper.make_tensor_value_info(ADAPTERS, onnx.TensorProto.INT64, ["rows"]))
    del graph.node[:]
    graph.node.extend(kept)
    del graph.input[:]
    graph.input.extend(inputs)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
