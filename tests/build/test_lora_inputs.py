"""The graph step: which graphs it takes, that idle inputs change nothing, and which graphs it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from loraplex.build import builder
from loraplex.build.errors import ExportFailed
from loraplex.build.export import export_base
from loraplex.build.lora_inputs import add_lora_inputs
from tests.build.conftest import Built
from tests.build.generation import Runner, expected_tokens
from tests.checkpoints import Family, make_checkpoint, quiet

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 export without LoRA inputs. Read only."""
    folder = tmp_path_factory.mktemp("plain")
    export_base(checkpoint, folder, precision="float32")
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def run_builder(checkpoint: Path, output: Path, provider: str, precision: str, **options: object) -> None:
    """The model builder with options that export_base does not use."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    output.mkdir()
    with (output / "log").open("w") as stream, builder.noise_to(stream):
        positional = (None, str(checkpoint), str(output), precision, provider, str(output / "cache"))
        pairs = [f"{key}={value}" for key, value in {"hf_token": "false", **options}.items()]
        create_model(*positional, **parse_extra_options(*positional, pairs))


def test_inputs_are_those_of_the_contract(folder: Path) -> None:
    projections = add_lora_inputs(folder)
    assert projections == {
        f"{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            **{"attn.q_proj": (64, 64), "attn.k_proj": (64, 32), "attn.v_proj": (64, 32), "attn.o_proj": (64, 64)},
            **{"mlp.gate_proj": (64, 128), "mlp.up_proj": (64, 128), "mlp.down_proj": (128, 64)},
        }.items()
    }
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    inputs = {value.name: value.type.tensor_type for value in graph.input if ".lora_" in value.name}
    defaults = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if ".lora_" in tensor.name}
    assert inputs.keys() == defaults.keys()
    assert len(inputs) == 2 * len(projections)
    ranks = set()
    for projection, (rows, columns) in projections.items():
        a, b = (f"model.layers.{projection}.lora_{side}.weight" for side in "AB")
        assert (defaults[a], defaults[b]) == ((rows, 0), (0, columns))
        shapes = [inputs[name].shape.dim for name in (a, b)]
        assert (shapes[0][0].dim_value, shapes[1][1].dim_value) == (rows, columns)
        assert shapes[0][1].dim_param == shapes[1][0].dim_param
        ranks.add(shapes[0][1].dim_param)
    assert len(ranks) == len(projections), "every module needs a rank symbol of its own"


def test_weights_are_neither_read_nor_touched(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.rename(folder.parent / "elsewhere")
    add_lora_inputs(folder)
    assert not data.exists()
    assert (folder / "model.onnx").stat().st_size < 50_000


@pytest.mark.slow
@pytest.mark.parametrize("family", get_args(Family))
def test_idle_inputs_change_no_bit(family: Family, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    export_base(checkpoint, tmp_path / "plain", precision="float32")
    shutil.copytree(tmp_path / "plain", tmp_path / "idle")
    add_lora_inputs(tmp_path / "idle")
    plain, idle = Runner(tmp_path / "plain"), Runner(tmp_path / "idle")
    np.testing.assert_array_equal(idle.logits(PROMPT), plain.logits(PROMPT))
    assert idle.tokens(PROMPT, 24) == plain.tokens(PROMPT, 24)


@pytest.mark.parametrize(
    ("options", "linears"),
    [({"fuse_qkv": "false"}, 7), ({"fuse_mlp_gate_up": "true"}, 4), ({"prune_lm_head": "true"}, 5)],
)
def test_packed_or_not(built: Built, tmp_path: Path, options: dict[str, str], linears: int) -> None:
    """Adapters are the same for all forms of one base."""
    run_builder(built.checkpoint, tmp_path / "out", "cpu", "fp32", **options)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert sum(node.op_type == "MatMul" for node in graph.node) == 2 * linears + 1
    assert add_lora_inputs(tmp_path / "out") == built.bundle.manifest.base.projections
    adapters = {name: built.bundle.adapter(name) / f"{name}.onnx_adapter" for name in built.peft}
    runner = Runner(tmp_path / "out", adapters)
    for name, peft in built.peft.items():
        assert runner.tokens(PROMPT, 16, name) == expected_tokens(built.checkpoint, peft, PROMPT, 16)


def test_float16_graph_for_paged_attention(checkpoint: Path, tmp_path: Path) -> None:
    """It needs a GPU to run; here the graph is read. The last layer's MLP takes selected rows of its input only."""
    run_builder(checkpoint, tmp_path / "out", "cuda", "fp16", use_paged_attention="true", prune_lm_head="true")
    assert len(add_lora_inputs(tmp_path / "out")) == 2 * 7
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    for node in graph.node:
        assert known.issuperset(node.input), f"{node.name} comes before what it reads"
        known.update(node.output)
    nodes = {node.name: node for node in graph.node}
    for layer in range(2):
        base = nodes[f"/model/layers.{layer}/mlp/gate_proj/MatMul"]
        assert nodes[f"/model/layers.{layer}/mlp/gate_proj/lora_A/MatMul"].input[0] == base.input[0]
    types = {value.type.tensor_type.elem_type for value in graph.input if ".lora_" in value.name}
    assert types == {onnx.TensorProto.FLOAT16}


def rename(node: str, name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        (found,) = (candidate for candidate in graph.node if candidate.name == node)
        found.name = name

    return change


def operator(node: str, name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        (found,) = (candidate for candidate in graph.node if candidate.name == node)
        found.op_type = name

    return change


def drop_weight(name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        kept = [tensor for tensor in graph.initializer if tensor.name != name]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    return change


O_PROJ = "/model/layers.1/attn/o_proj/MatMul"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename(O_PROJ, "/model/layers.1/attn/dense/MatMul"),
            "layer 1 has a linear layer that is no known projection: ",
        ),
        (rename(O_PROJ, "/model/layers.1/linear_attn/o_proj/MatMul"), "no known projection: /model/layers.1/linear_at"),
        (rename(O_PROJ, "/model/layers.1/mlp/o_proj/MatMul"), "no known projection: /model/layers.1/mlp/o_proj"),
        (rename(O_PROJ, "somewhere/MatMul"), "layer 1 has 0 linear layers for attn.o_proj instead of one"),
        (rename(O_PROJ, "/model/layers.0/attn/o_proj/MatMul"), "layer 0 has 2 linear layers for attn.o_proj"),
        (
            rename(O_PROJ, "/model/layers.1/attn/qkv_proj/MatMul"),
            "qkv_proj/MatMul has 64 output features, q_proj + k_p",
        ),
        (rename(O_PROJ, "/model/layers.2/attn/o_proj/MatMul"), "layer 1 has 0 linear layers for attn.o_proj"),
        (operator(O_PROJ, "Gemm"), "/model/layers.1/attn/o_proj/MatMul is a Gemm, which cannot take LoRA inputs"),
        (drop_weight("model.layers.1.attn.o_proj.MatMul.weight"), "o_proj/MatMul has no constant weight of two dimens"),
    ],
)
def test_graphs_with_other_layers_are_refused(
    folder: Path, change: Callable[[onnx.GraphProto], None], words: str
) -> None:
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)
    before = path.read_bytes()
    with pytest.raises(ExportFailed) as info:
        add_lora_inputs(folder)
    assert words in info.value.message
    assert path.read_bytes() == before
    assert not (folder / "model.onnx.part").exists()


def test_graph_with_more_layers_than_its_config(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["num_hidden_layers"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(ExportFailed, match="the graph has more decoder layers than the 1 of its config"):
        add_lora_inputs(folder)


def test_inputs_are_added_once(folder: Path) -> None:
    add_lora_inputs(folder)
    with pytest.raises(ExportFailed, match=r"model\.onnx has LoRA inputs already"):
        add_lora_inputs(folder)


@pytest.mark.parametrize(("family", "words"), [("phi", "fc1"), ("nemotron", "0 linear layers for mlp.gate_proj")])
def test_families_with_another_mlp_are_refused(tmp_path: Path, family: str, words: str) -> None:
    with quiet():
        checkpoint = make_checkpoint(tmp_path / "checkpoint", family, tie_word_embeddings=False)  # type: ignore[arg-type]
        run_builder(checkpoint, tmp_path / "out", "cpu", "fp32")
    with pytest.raises(ExportFailed, match=words):
        add_lora_inputs(tmp_path / "out")
