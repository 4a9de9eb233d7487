"""The paged export and what the linker makes of it, as far as that shows without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from loraplex.build.builder import Precision
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.paged import export_paged
from loraplex.server.engine.linker import link, link_slots, takes_operator
from tests.build.conftest import Built


@pytest.fixture(scope="module")
def paged(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama checkpoint's float16 paged variant. Read only."""
    folder = tmp_path_factory.mktemp("paged") / "float16"
    export_paged(checkpoint, folder, precision="float16")
    return folder


def nodes(folder: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize(("precision", "operator"), [("float16", "MatMul"), ("int4", "MatMulNBits")])
def test_layers_with_the_same_input_are_one(
    precision: Precision, operator: str, checkpoint: Path, tmp_path: Path
) -> None:
    export_paged(checkpoint, tmp_path, precision=precision, group_size=32)
    linears = [
        node.name.split("/")[-2] for node in nodes(tmp_path) if node.op_type == operator and "layers.0" in node.name
    ]
    assert linears == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert json.loads((tmp_path / "genai_config.json").read_text())["engine"]["dynamic_batching"]["block_size"] == 256


def test_group_size_that_cannot_be(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnsupported, match="group_size"):
        export_paged(checkpoint, tmp_path, precision="int4", group_size=48)
    assert not list(tmp_path.iterdir())


def files(built: Built) -> list[Path]:
    return [built.bundle.adapter(name) / f"{name}.onnx_adapter" for name in built.peft]


def test_linked_with_stock_operators(built: Built, paged: Path, tmp_path: Path) -> None:
    linked = link(paged, files(built), tmp_path)
    graph = onnx.load(linked.folder / "model.onnx", load_external_data=False).graph
    config = json.loads((linked.folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["num_hidden_layers"] == 3
    assert config["model"]["decoder"]["state_groups"] == [{"kind": "paged_kv", "layer_ids": [0, 1, 2]}]
    assert {"past_key_values.2.key", "past_key_values.2.value"} <= {value.name for value in graph.input}
    assert sum(node.op_type == "PagedAttention" for node in graph.node) == 3
    # The builder lets the last layer's MLP run on the rows whose logits are wanted: its masks have the same rows.
    masks = {node.name: node.input[1] for node in graph.node if node.name.endswith("/own")}
    assert [mask.endswith("/selected") for mask in masks.values()] == [False] * 6 + [True] * 2
    weights = {tensor.name: tensor for tensor in graph.initializer}
    assert weights["lora/0.attn.q_proj/A"].data_type == onnx.TensorProto.FLOAT16, "the adapter files are float32"


def test_linked_with_the_fused_operator(built: Built, paged: Path, tmp_path: Path) -> None:
    library = tmp_path / "liblora.so"
    library.write_bytes(b"only copied by the linker")
    ranks = dict.fromkeys(built.bundle.manifest.base.projections, 9)
    linked = link_slots(paged, ranks, 3, tmp_path / "cache", library)
    found = nodes(linked.folder)
    branches = [node for node in found if node.op_type in ("LoraUp", "LoraUpGated")]
    assert [node.op_type for node in branches] == ["LoraUp", "LoraUp", "LoraUpGated", "LoraUp"] * 2
    assert sum(node.op_type == "LoraDown" for node in found) == len(branches)
    assert not {"Split", "Sigmoid"} & {node.op_type for node in found}
    attributes = {attribute.name: attribute for attribute in branches[0].attribute}
    assert (attributes["ranks"].i, attributes["slots"].i, len(attributes["widths"].ints)) == (16, 3, 3)
    assert linked.layout is not None
    assert linked.layout.holds(ranks)
    config = json.loads((linked.folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["custom_ops_library"] == library.name
    assert (linked.folder / library.name).read_bytes() == library.read_bytes()


def test_projections_without_ranks_get_no_operator(paged: Path, tmp_path: Path) -> None:
    library = tmp_path / "liblora.so"
    library.write_bytes(b"")
    linked = link_slots(paged, {"0.attn.o_proj": 4}, 3, tmp_path / "cache", library)
    operators = [node for node in nodes(linked.folder) if node.op_type.startswith("Lora")]
    assert [node.op_type for node in operators] == ["LoraDown", "LoraUp"]
    assert all("layers.0/attn/o_proj" in node.name or "0.attn.o_proj" in node.name for node in operators)


def test_cpu_graphs_take_stock_operators(built: Built, paged: Path) -> None:
    assert takes_operator(paged)
    assert not takes_operator(built.bundle.variant("generator"))
