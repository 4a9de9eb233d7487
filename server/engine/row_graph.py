"""The exported graph with one adapter a row: the same nodes, with a leading dimension on every LoRA input.

The generator's graph adds x @ A @ B with A [in_features, rank] and B [rank, out_features]. MatMul broadcasts over
leading dimensions, so that A [rows, in_features, rank] gives each row of x [rows, tokens, in_features] an adapter of
its own, and A [1, in_features, rank] gives all of them the same. Only the declared shapes keep the graph from that.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from loraplex.server.errors import BundleInvalid

LORA = ".lora_"
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"
"""Session option: where a model given as bytes finds its weights, which are then mapped, not read."""


def row_graph(path: Path) -> onnx.ModelProto:
    """The model in `path`, its weights still in the file beside it, where onnxruntime finds them by EXTERNAL_DATA.

    Each LoRA input is declared [adapters, ...] with adapters 1 or the number of rows, and must be fed: the zero-rank
    defaults, which have the wrong number of dimensions, are gone. Raises BundleInvalid where the file is no model.
    """
    try:
        model: onnx.ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions, of which onnx documents none
        raise BundleInvalid(f"{path} is not an ONNX model: {error}") from None
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
    # Shapes that the exporter inferred with two-dimensional LoRA inputs.
    del graph.value_info[:]
    return model
