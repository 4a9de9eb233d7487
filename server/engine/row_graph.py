"""The exported graph with one adapter a row, and logits where they are asked for.

The generator's graph adds x @ A @ B with A [in_features, rank] and B [rank, out_features]. MatMul broadcasts over
leading dimensions, so that A [rows, in_features, rank] gives each row of x [rows, tokens, in_features] an adapter of
its own, and A [1, in_features, rank] gives all of them the same. Only the declared shapes keep the graph from that.

It computes the logits of a row's last token alone, by a Gather before its head. That Gather takes its place from an
input here, so that one graph gives the logits of a prompt's other tokens too.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from loraplex.server.errors import BundleInvalid

LORA = ".lora_"
POSITIONS = "loraplex_positions"
"""The graph input [places]: of which of a pass's tokens there are logits, the same ones in each row; -1 is the last."""
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"
"""Session option: where a model given as bytes finds its weights, which are then mapped, not read."""


def row_graph(path: Path) -> onnx.ModelProto:
    """The model in `path`, its weights still in the file beside it, where onnxruntime finds them by EXTERNAL_DATA.

    Each LoRA input is declared [adapters, ...] with adapters 1 or the number of rows, and must be fed: the zero-rank
    defaults, which have the wrong number of dimensions, are gone. POSITIONS is an input where the graph gathered the
    last token. Raises BundleInvalid where the file is no model.
    """
    model = load_graph(path)
    graph = model.graph
    for value in graph.input:
        if LORA not in value.name:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, tensor.elem_type, ["adapters", *shape]))
    kept = [tensor for tensor in graph.initializer if LORA not in tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _gather_positions(graph)
    # Shapes that the exporter inferred with two-dimensional LoRA inputs.
    del graph.value_info[:]
    return model


def load_graph(path: Path) -> onnx.ModelProto:
    """The model in `path`, without its weights. Raises BundleInvalid where the file is no model."""
    try:
        model: onnx.ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions, of which onnx documents none
        raise BundleInvalid(f"{path} is not an ONNX model: {error}") from None
    return model


def _gather_positions(graph: onnx.GraphProto) -> None:
    """Feed the Gather of the last token, if the head has one: Gather along tokens by a scalar, then Unsqueeze."""
    producers = {output: node for node in graph.node for output in node.output}
    (logits,) = (value for value in graph.output if value.name == "logits")
    node = producers.get(logits.name)
    while node and node.op_type != "Unsqueeze":
        node = producers.get(node.input[0]) if node.input else None
    gather = producers.get(node.input[0]) if node else None
    if node is None or gather is None or gather.op_type != "Gather":
        return
    if [attribute.i for attribute in gather.attribute if attribute.name == "axis"] != [1]:
        return
    gather.input[1] = POSITIONS
    gather.output[0] = node.output[0]
    graph.node.remove(node)
    graph.input.append(onnx.helper.make_tensor_value_info(POSITIONS, onnx.TensorProto.INT64, ["places"]))
    logits.type.tensor_type.shape.dim[1].dim_param = "places"
