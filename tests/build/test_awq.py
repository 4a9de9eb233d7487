"""AWQ checkpoints: what their weights are, what is exported of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from loraplex.build.assembly import build_bundle
from loraplex.build.awq import dequantize, unpack
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.export import export_base
from loraplex.build.fingerprint import fingerprint
from loraplex.build.graph_weights import iterate_linears
from loraplex.build.twin import Checkpoint, load_twin
from loraplex.server.bundle import Quantization
from tests.awq import make_awq, pack
from tests.build.generation import Runner
from tests.checkpoints import Family, make_adapter, make_checkpoint, quiet

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture(scope="module")
def awq(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama checkpoint in AWQ's format, groups of 32. Read only."""
    return make_awq(checkpoint, tmp_path_factory.mktemp("awq") / "llama")


@pytest.fixture
def copy(awq: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(awq, tmp_path / "copy"))


def test_the_format() -> None:
    """The two numbers of AutoAWQ's own packing that tell its order from the natural one."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 16, (6, 24))
    packed = torch.from_numpy(pack(values))
    np.testing.assert_array_equal(unpack(packed).numpy(), values)
    # Column 2 lies in the second four bits, and column 1 in the fifth.
    one = np.zeros((1, 8), int)
    one[0, 2], one[0, 1] = 5, 9
    assert unpack(torch.tensor([[(5 << 4) | (9 << 16)]], dtype=torch.int32)).tolist() == one.tolist()
    zeros, scales = rng.integers(0, 16, (2, 24)), rng.random((2, 24)).astype(np.float16)
    weight = dequantize(packed, torch.from_numpy(pack(zeros)), torch.from_numpy(scales))
    for row, column in ((0, 0), (2, 7), (3, 8), (5, 23)):
        expected = (values[row, column] - zeros[row // 3, column]) * np.float32(scales[row // 3, column])
        assert weight[column, row] == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("group_size", [32, 64])
def test_export(family: Family, group_size: int, tmp_path: Path) -> None:
    """Packed, the weights bit for bit, and logits within 1e-4 of the float model. With 64 a row is one group."""
    awq = make_awq(make_checkpoint(tmp_path / "float", family), tmp_path / "awq", group_size)
    result = export_base(awq, tmp_path / "out", precision="int4", accuracy_level=1, head="float")
    assert (result.quantization, result.dtype) == (Quantization("awq", 4, group_size), "float32")
    checkpoint = Checkpoint(awq)
    linears = list(iterate_linears(tmp_path / "out"))
    assert [len(linear.modules) for linear in linears] == [3, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1]
    for linear in linears:
        expected = torch.cat([checkpoint.linear(module) for module in linear.modules])
        np.testing.assert_array_equal(linear.weight, expected.numpy())
    with quiet(), torch.inference_mode():
        expected_logits = load_twin(awq)(torch.tensor([PROMPT])).logits[0, -1].numpy()
    np.testing.assert_allclose(Runner(tmp_path / "out").logits(PROMPT), expected_logits, rtol=0, atol=1e-4)


def test_bundle(awq: Path, tmp_path: Path) -> None:
    peft = {"one": make_adapter(tmp_twin(awq, tmp_path), tmp_path / "one")}
    bundle = build_bundle(awq, peft, tmp_path / "bundle", name="tiny", precision="int4")
    assert bundle.manifest.base.quantization == Quantization("awq", 4, 32)
    assert bundle.manifest.base.fingerprint == fingerprint(awq)
    runner = Runner(bundle.variant("generator"), {"one": bundle.adapter("one") / "one.onnx_adapter"})
    assert len(runner.tokens(PROMPT, 8, "one")) > 0


def tmp_twin(awq: Path, tmp_path: Path) -> Path:
    """The dequantized model as a checkpoint of its own, which PEFT can load."""
    folder = tmp_path / "twin"
    with quiet():
        load_twin(awq).save_pretrained(folder)
    return folder


def test_twin_is_strict(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2, 2)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointUnsupported, match=r"missing, left over or of another shape: model\.layers\.0\.mlp\."):
        load_twin(copy)
    del tensors["model.layers.0.mlp.extra.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointUnsupported, match=r"another shape: model\.norm\.weight"):
        load_twin(copy)
    tensors["model.norm.weight"] = norm[:-1].clone()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointUnsupported):
        load_twin(copy)


def test_fingerprint_names_the_weights_not_the_program(awq: Path, copy: Path) -> None:
    change(copy, meta={"quantizer": ["gptqmodel:7.6.0"]}, backend="auto")
    assert fingerprint(copy) == fingerprint(awq)
    change(copy, group_size=64)
    assert fingerprint(copy) != fingerprint(awq)


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_method": "gptq"}, "is quantized already (gptq); give the checkpoint it was made from, or"),
        ({"version": "gemv"}, "is AWQ of format gemv with 4 bits; bundles take gemm with 4 bits"),
        ({"version": None, "checkpoint_format": "gemv_fast"}, "is AWQ of format gemv_fast"),
        ({"bits": 8}, "is AWQ of format gemm with 8 bits"),
        ({"desc_act": True}, "with 4 bits in activation order; bundles take"),
        ({"group_size": -1}, "has group_size -1; bundles take a fixed number"),
        ({"group_size": 16}, "qweight [128, 8], qzeros [4, 8] and scales [4, 64], which do not fit groups of 16"),
    ],
)
def test_refused(copy: Path, tmp_path: Path, fields: dict[str, object], words: str) -> None:
    change(copy, **fields)
    with pytest.raises(CheckpointUnsupported) as info:
        export_base(copy, tmp_path / "out", precision="int4")
    assert words in info.value.message
    assert not (tmp_path / "out").exists()


def test_every_layer_must_be_quantized(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    for part in ("qweight", "qzeros", "scales"):
        del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(128, 64)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointUnsupported, match=r"layers\.1\.mlp\.up_proj is not quantized as AWQ does it"):
        export_base(copy, tmp_path / "out", precision="int4")


def test_options_that_do_not_go_together(awq: Path, checkpoint: Path, tmp_path: Path) -> None:
    for source, options, words in (
        (awq, {"precision": "float32"}, "so precision float32 cannot be had from it"),
        (awq, {"precision": "int4", "algorithm": "rtn"}, "so algorithm rtn cannot be had from it"),
        (awq, {"precision": "int4", "group_size": 128}, "so group_size 128 cannot be had from it"),
        (checkpoint, {"precision": "int4", "algorithm": "awq"}, "is not quantized by AWQ: quantize it first"),
        (checkpoint, {"precision": "float16"}, "precision float16 is not made for cpu: take float32 or int4"),
    ):
        with pytest.raises(CheckpointUnsupported) as info:
            export_base(source, tmp_path / "out", **options)
        assert words in info.value.message
    assert not (tmp_path / "out").exists()
