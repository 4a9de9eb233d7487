"""The graph step that makes adapters possible: optional LoRA inputs on every projection of an exported model.onnx.

Each projection gets the two inputs of the bundle's contract, A [in_features, rank] and B [rank, out_features], with
zero-rank default values, and `x @ A @ B` is added to its output. Without an adapter the added term is a product over
zero elements, so the output stays that of the plain graph, bit for bit. It is added after the layer's bias, as in PEFT:
between the two it would keep onnxruntime from folding the bias into the MatMulNBits, which also rounds differently.

Every module has a rank symbol of its own. With one symbol for all, onnxruntime takes activations of one symbolic shape
for equally large and reuses their buffers, which fails for an adapter that covers some modules only.

The branch is two MatMuls and an Add, with a Concat before the Add where the layer is packed. That is the least that
stock operators need, and an idle node costs about a microsecond: an int4 Llama of 7M parameters in 8 layers made 1180
tokens/s without the inputs, 1000 with idle ones, 870 with a rank-8 adapter on all seven linear layers (one thread).
Skipping idle branches with an If per layer was slower even when idle (860, and 535 with the adapter), and so was one
product with the concatenated A of a packed layer (890 and 630). onnxruntime turns MatMul and Add into a Gemm only for
operands of two dimensions, so it leaves these of three as they are, whichever operand of the Add comes first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from loraplex.build.errors import ExportFailed

Projections = dict[str, tuple[int, int]]
"""(in_features, out_features) by projection name, as in the bundle's Base."""

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
BLOCKS = {"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}

_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul(?:NBits|_Q\d+)?")
_IN_LAYER = re.compile(r"/model/layers\.(\d+)/")
_LINEAR_OPERATORS = frozenset(
    {"FusedMatMul", "Gemm", "MatMul", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits", "MoE", "QMoE", "SparseMoE"}
)


@dataclass(frozen=True)
class _Linear:
    """A linear layer of the graph. `modules` are the projections in it, in order, with their out_features.

    `node` multiplies with the weight, `last` gives the layer's output: the Add of its bias, or `node` again.
    """

    node: onnx.NodeProto
    last: onnx.NodeProto
    layer: int
    block: str
    in_features: int
    modules: dict[str, int]
    element_type: int

    def projection(self, module: str) -> str:
        return f"{self.layer}.{self.block}.{module}"


def add_lora_inputs(folder: Path) -> Projections:
    """Rewrite model.onnx of an exported folder in place; the external weights are neither read nor touched.

    Takes MatMul and MatMulNBits nodes, packed or not, as the model builder names them. Raises ExportFailed, and leaves
    the folder as it was, where a decoder layer lacks one of the seven projections, has a linear layer besides them, or
    has LoRA inputs already.
    """
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    if any(".lora_A." in value.name for value in model.graph.input):
        raise ExportFailed(f"{path} has LoRA inputs already")
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    linears = {linear.last.name: linear for linear in _find_linears(model.graph, decoder)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if linear := linears.get(node.name):
            for value, default in _inputs(linear):
                model.graph.input.append(value)
                model.graph.initializer.append(default)
            nodes.extend(_branch(linear))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    written = path.with_name("model.onnx.part")
    onnx.save(model, written)
    written.replace(path)
    return {
        linear.projection(module): (linear.in_features, width)
        for linear in linears.values()
        for module, width in linear.modules.items()
    }


def _find_linears(graph: onnx.GraphProto, decoder: Mapping[str, int]) -> list[_Linear]:
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[_Linear] = []
    for node in graph.node:
        if node.op_type not in _LINEAR_OPERATORS or not (inside := _IN_LAYER.match(node.name)):
            continue
        parsed = _LINEAR.fullmatch(node.name)
        modules = PACKED.get(parsed[3], (parsed[3],)) if parsed else ()
        if not parsed or any(module not in BLOCKS[parsed[2]] for module in modules):
            raise ExportFailed(f"layer {inside[1]} has a linear layer that is no known projection: {node.name}")
        rows, columns, element_type = _measure(node, initializers)
        widths = _widths(parsed[3], columns, decoder)
        if sum(widths) != columns:
            raise ExportFailed(f"{node.name} has {columns} output features, {' + '.join(modules)} need {sum(widths)}")
        match readers.get(node.output[0], []):
            case [reader] if reader.op_type == "Add" and any(name in initializers for name in reader.input):
                last = reader
            case _:
                last = node
        outputs = dict(zip(modules, widths, strict=True))
        found.append(_Linear(node, last, int(parsed[1]), parsed[2], rows, outputs, element_type))
    _check_complete([linear.projection(module) for linear in found for module in linear.modules], decoder)
    return found


def _check_complete(projections: list[str], decoder: Mapping[str, int]) -> None:
    """Every layer has each projection once: a projection that was overlooked would silently ignore its adapter."""
    layers = decoder["num_hidden_layers"]
    for layer in range(layers):
        for block, modules in BLOCKS.items():
            for module in modules:
                if (count := projections.count(f"{layer}.{block}.{module}")) != 1:
                    raise ExportFailed(f"layer {layer} has {count} linear layers for {block}.{module} instead of one")
    if len(projections) != layers * sum(map(len, BLOCKS.values())):
        raise ExportFailed(f"the graph has more decoder layers than the {layers} of its config")


def _measure(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> tuple[int, int, int]:
    """in_features, out_features and the ONNX element type of a linear layer's activations."""
    try:
        match node.op_type:
            case "MatMul":
                weight = initializers[node.input[1]]
                rows, columns = weight.dims
                return rows, columns, weight.data_type
            case "MatMulNBits":
                attributes = {attribute.name: attribute.i for attribute in node.attribute}
                return attributes["K"], attributes["N"], initializers[node.input[2]].data_type
    except (KeyError, IndexError, ValueError):
        raise ExportFailed(f"{node.name} has no constant weight of two dimensions") from None
    raise ExportFailed(f"{node.name} is a {node.op_type}, which cannot take LoRA inputs")


def _widths(name: str, columns: int, decoder: Mapping[str, int]) -> tuple[int, ...]:
    """out_features of the projections that a linear layer packs, in their order."""
    match name:
        case "qkv_proj":
            kv = decoder["num_key_value_heads"] * decoder["head_size"]
            return decoder["num_attention_heads"] * decoder["head_size"], kv, kv
        case "gate_up_proj":
            return columns // 2, columns // 2
        case _:
            return (columns,)


def _inputs(linear: _Linear) -> Iterator[tuple[onnx.ValueInfoProto, onnx.TensorProto]]:
    """The graph inputs of a linear layer, each with its zero-rank default value."""
    dtype = helper.tensor_dtype_to_np_dtype(linear.element_type)
    for module, width in linear.modules.items():
        rank = f"rank_{linear.layer}_{module}"
        shapes: dict[str, tuple[int | str, int | str]] = {"A": (linear.in_features, rank), "B": (rank, width)}
        for side, shape in shapes.items():
            name = f"model.layers.{linear.projection(module)}.lora_{side}.weight"
            empty = np.zeros([0 if size == rank else int(size) for size in shape], dtype)
            yield helper.make_tensor_value_info(name, linear.element_type, shape), numpy_helper.from_array(empty, name)


def _branch(linear: _Linear) -> Iterator[onnx.NodeProto]:
    """The nodes that add `x @ A @ B` to the layer's output, whose name they take over."""
    source, output = linear.node.input[0], linear.last.output[0]
    prefix = f"/model/layers.{linear.layer}/{linear.block}"
    linear.last.output[0] = base = f"{output}/base"
    deltas = []
    for module in linear.modules:
        weights = f"model.layers.{linear.projection(module)}"
        a, b = (f"{prefix}/{module}/lora_{side}/MatMul" for side in "AB")
        yield helper.make_node("MatMul", [source, f"{weights}.lora_A.weight"], [f"{a}/output_0"], a)
        yield helper.make_node("MatMul", [f"{a}/output_0", f"{weights}.lora_B.weight"], [f"{b}/output_0"], b)
        deltas.append(f"{b}/output_0")
    name = "_".join(linear.modules)
    if len(deltas) > 1:
        concat = f"{prefix}/{name}/lora/Concat"
        yield helper.make_node("Concat", deltas, [f"{concat}/output_0"], concat, axis=-1)
        deltas = [f"{concat}/output_0"]
    yield helper.make_node("Add", [base, *deltas], [output], f"{prefix}/{name}/lora/Add")
