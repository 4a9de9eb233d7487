"""Exports: what is written, what is checked afterwards, and what is refused before."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from loraplex.build import export
from loraplex.build.builder import Device, Precision, run_builder
from loraplex.build.checkpoint import locate
from loraplex.build.errors import CheckpointUnsupported, ExportFailed
from loraplex.build.export import export_base, run_once
from loraplex.build.lora_inputs import add_lora_inputs
from loraplex.build.weight_format import Head
from loraplex.server.bundle import Quantization, Sampling
from tests.build.generation import Runner
from tests.checkpoints import CHAT_TEMPLATE, make_checkpoint

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def nodes(folder: Path) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}


def attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def test_everything_is_in_the_folder(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    before = (sys.stdout, sys.stderr)
    result = export_base(checkpoint, tmp_path / "out", precision="float32", log=tmp_path / "export.log")
    assert capfd.readouterr() == ("", "")
    assert "Saving ONNX model" in (tmp_path / "export.log").read_text()
    assert (sys.stdout, sys.stderr) == before
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert (result.architecture, result.dtype, result.context_length, result.vocab_size, result.quantization) == (
        *("LlamaForCausalLM", "float32", 256, 160),
        Quantization("none", 32),
    )
    assert result.sampling == Sampling()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("model.onnx", "model.onnx.data", "genai_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert [dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim][1:] == [1, 160]
    assert (
        (tmp_path / "out" / "model.onnx").stat().st_size
        < 50_000
        < (tmp_path / "out" / "model.onnx.data").stat().st_size
    )


def test_logits_of_every_token_on_request(checkpoint: Path, tmp_path: Path) -> None:
    export_base(checkpoint, tmp_path, precision="float32", prune_lm_head=False)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert graph.output[0].type.tensor_type.shape.dim[1].dim_param == "sequence_length"


def test_sampling_of_the_checkpoint(copy: Path, tmp_path: Path) -> None:
    change_json(copy / "generation_config.json", do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.1)
    result = export_base(copy, tmp_path / "out", precision="float32")
    assert result.sampling == Sampling(temperature=0.7, top_k=20, repetition_penalty=1.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize(
    ("algorithm", "group_size", "accuracy_level", "head"),
    [("k_quant", 32, 4, "float"), ("k_quant", 16, 1, "int8"), ("rtn", 64, 0, "int4"), ("rtn", 32, 4, "int8")],
)
def test_int4(
    family: Literal["llama", "qwen2", "phi3"],
    algorithm: Literal["k_quant", "rtn"],
    group_size: int,
    accuracy_level: Literal[0, 1, 4],
    head: Head,
    tmp_path: Path,
) -> None:
    """The nodes are what was asked for, and idle inputs give the bits of the graph without them."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, tie_word_embeddings=family == "qwen2")
    result = export_base(
        checkpoint,
        tmp_path / "plain",
        precision="int4",
        group_size=group_size,
        algorithm=algorithm,
        accuracy_level=accuracy_level,
        head=head,
    )
    assert result.quantization == Quantization(algorithm, 4, group_size)
    linears = {name: node for name, node in nodes(tmp_path / "plain").items() if node.op_type.startswith("MatMul")}
    assert nodes(tmp_path / "plain")["/model/embed_tokens/Gather"].op_type == "Gather", "the embedding stays float32"
    heads = [linears.pop(name) for name in list(linears) if name.startswith("/lm_head")]
    assert len(linears) == 2 * 5
    for node in linears.values():
        found = attributes(node)
        assert (found["bits"], found["block_size"], found.get("accuracy_level", 0)) == (4, group_size, accuracy_level)
    assert [node.op_type for node in heads] == ["MatMul" if head == "float" else "MatMulNBits"]
    assert head == "float" or attributes(heads[0])["bits"] == {"int8": 8, "int4": 4}[head]

    shutil.copytree(tmp_path / "plain", tmp_path / "idle")
    add_lora_inputs(tmp_path / "idle")
    plain, idle = Runner(tmp_path / "plain"), Runner(tmp_path / "idle")
    np.testing.assert_array_equal(idle.logits(PROMPT), plain.logits(PROMPT))
    assert idle.tokens(PROMPT, 24) == plain.tokens(PROMPT, 24)


def test_options_that_the_builder_did_not_honour(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks afterwards, for a builder that loses options on the way."""
    from collections.abc import Mapping

    def lossy(lost: str) -> None:
        def forget(
            folder: Path,
            output: Path,
            precision: Precision,
            device: Device,
            options: Mapping[str, object],
            log: Path | None,
        ) -> None:
            run_builder(folder, output, precision, device, {k: v for k, v in options.items() if k != lost}, log)

        monkeypatch.setattr(export, "run_builder", forget)

    for lost, words in (
        ("nodes_to_exclude", "/lm_head/MatMul_Q4 was quantized, although it was to stay float32"),
        ("block_size", "has block_size 32, 16 was asked for"),
        ("accuracy_level", "has accuracy_level 4, 1 was asked for"),
    ):
        lossy(lost)
        with pytest.raises(ExportFailed, match=words):
            export_base(checkpoint, tmp_path / lost, precision="int4", group_size=16, accuracy_level=1, head="float")


def test_files_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    export_base(checkpoint, tmp_path, precision="float32")
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(ExportFailed, match=r"model\.onnx\.data is too short for "):
        export._check_files(tmp_path)
    with pytest.raises(ExportFailed, match="was written but does not run"):
        run_once(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ExportFailed, match=r"finished without writing .*tokenizer\.json"):
        export._check_files(tmp_path)


def test_weights_that_are_not_finite(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportFailed, match="gives logits that are not finite"):
        export_base(copy, tmp_path / "out", precision="float32")


def test_a_builder_that_fails_is_quoted(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ExportFailed, match="the model builder failed on ") as info:
        export_base(copy, tmp_path / "out", precision="float32")
    assert info.value.__notes__
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "is Gemma3ForCausalLM; bundles can be made of Ernie"),
        ({"architectures": ["SmolLM3ForCausalLM"]}, "is SmolLM3ForCausalLM; bundles can be made of Ernie"),
        ({"architectures": ["OlmoForCausalLM"]}, "is OlmoForCausalLM; bundles can be made of Ernie"),
        ({"architectures": None}, "is an unnamed architecture; bundles can be made of"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scales RoPE by 'linear'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scales RoPE by 'dynamic'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "is quantized already (gptq); give the checkpoint it was made from",
        ),
        ({"vocab_size": 64}, "proj.weight has as many outputs as the vocabulary has tokens (64)"),
        ({"model_type": "unheard_of"}, "config.json cannot be used: "),
    ],
)
def test_refused_checkpoint(copy: Path, tmp_path: Path, fields: dict[str, object], words: str) -> None:
    change_json(copy / "config.json", **fields)
    with pytest.raises(CheckpointUnsupported) as info:
        export_base(copy, tmp_path / "out", precision="float32")
    assert words in info.value.message
    assert not (tmp_path / "out").exists()


def test_refused_group_sizes(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", intermediate_size=96)
    with pytest.raises(CheckpointUnsupported, match=r"96 input features of .*down_proj\.weight are an odd number of"):
        export_base(checkpoint, tmp_path / "out", precision="int4", group_size=32)
    with pytest.raises(CheckpointUnsupported, match="group_size is 48, it can be 16, 32"):
        export_base(checkpoint, tmp_path / "out", precision="int4", group_size=48)
    assert not (tmp_path / "out").exists()
    export_base(checkpoint, tmp_path / "out", precision="int4", group_size=32, algorithm="rtn")


def test_a_checkpoint_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnsupported, match="there is no checkpoint folder"):
        locate(tmp_path / "missing")
    with pytest.raises(CheckpointUnsupported, match="there is no checkpoint folder"):
        locate("./missing")
    with pytest.raises(CheckpointUnsupported, match="neither a folder nor a checkpoint that can be downloaded"):
        locate("nobody/nothing-of-this-name")
    assert locate(str(tmp_path)) == tmp_path
