"""What of PEFT converts, and how."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from loraplex.build.adapter import convert
from loraplex.build.peft_folder import pattern_value
from loraplex.server.bundle import Base, Quantization, Sampling, read_adapter_manifest
from loraplex.server.engine.adapter_file import check_adapter
from tests.build.conftest import Built
from tests.checkpoints import LINEARS, make_adapter, make_checkpoint, quiet

PREFIX = "base_model.model.model.layers.0"


def change_config(peft: Path, **fields: object) -> None:
    path = peft / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_manifest_tells_ranks_and_alphas_by_projection(built: Built) -> None:
    manifest = read_adapter_manifest(built.bundle.adapter("partial"))
    assert manifest.ranks == {
        **{"0.attn.q_proj": 1, "0.attn.v_proj": 2, "0.attn.o_proj": 4, "0.mlp.down_proj": 4},
        **{"1.attn.q_proj": 1, "1.attn.v_proj": 2, "1.attn.o_proj": 4, "1.mlp.down_proj": 7},
    }
    assert manifest.alphas == {
        **{"0.attn.q_proj": 8, "0.attn.v_proj": 3, "0.attn.o_proj": 12, "0.mlp.down_proj": 8},
        **{"1.attn.q_proj": 8, "1.attn.v_proj": 8, "1.attn.o_proj": 12, "1.mlp.down_proj": 8},
    }
    assert manifest.base_fingerprint == built.bundle.manifest.base.fingerprint


def test_conversion_is_reproducible(built: Built, base: Base, tmp_path: Path) -> None:
    first, second = (convert(built.peft["four"], base, tmp_path / side, name="mine") for side in ("a", "b"))
    assert first == second
    assert first.sha256 == read_adapter_manifest(built.bundle.adapter("four")).sha256


def test_options_of_the_manifest(built: Built, base: Base, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    manifest = convert(
        built.peft["four"],
        base,
        tmp_path / "mine",
        name="mine",
        description="answers",
        source="a run",
        chat_template=template,
        sampling=Sampling(temperature=0.5),
    )
    assert manifest == check_adapter(tmp_path / "mine", base) == read_adapter_manifest(tmp_path / "mine")
    assert (manifest.description, manifest.source, manifest.chat_template) == ("answers", "a run", "own.jinja")
    assert manifest.sampling == Sampling(temperature=0.5)
    assert (tmp_path / "mine" / "own.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_take_the_dtype_of_the_base(built: Built, base: Base, tmp_path: Path, dtype: str) -> None:
    narrow = msgspec.structs.replace(base, dtype=dtype)
    assert convert(built.peft["four"], narrow, tmp_path / "mine", name="mine").dtype == dtype
    assert check_adapter(tmp_path / "mine", narrow).dtype == dtype


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ({"q_proj": 2, "self_attn.q_proj": 3}, "model.layers.0.self_attn.q_proj"),
        ({"self_attn.q_proj": 3, "q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({".*proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"layers.1.self_attn.q_proj": 2}, "model.layers.11.self_attn.q_proj"),
        ({r"layers\.(0|1)\..*": 2, "q_proj": 4}, "model.layers.1.self_attn.q_proj"),
        ({"model.layers.0.self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({"q_proj|k_proj": 2}, "model.layers.0.self_attn.k_proj"),
        ({"^model.layers.0.self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj"),
        ({}, "model.layers.0.self_attn.q_proj"),
    ],
)
def test_patterns_mean_what_they_mean_to_peft(pattern: dict[str, int], path: str) -> None:
    with quiet():
        from peft.utils.other import get_pattern_key
    assert pattern_value(pattern, path, 8) == pattern.get(get_pattern_key(list(pattern), path), 8)


def test_fan_in_fan_out_changes_nothing(built: Built, peft: Path, base: Base, tmp_path: Path) -> None:
    """PEFT's A and B are linear layers of their own; the option only tells how the base's weight lies."""
    change_config(peft, fan_in_fan_out=True)
    manifest = convert(peft, base, tmp_path / "mine", name="mine")
    assert manifest.sha256 == read_adapter_manifest(built.bundle.adapter("four")).sha256


def test_phi3_modules_are_split_by_columns(tmp_path: Path) -> None:
    from onnxruntime import AdapterFormat
    from safetensors.numpy import load_file

    checkpoint = make_checkpoint(tmp_path / "checkpoint", "phi3")
    peft = make_adapter(checkpoint, tmp_path / "peft", rank=4, alpha=8)
    widths = {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 64, "gate_proj": 128, "up_proj": 128, "down_proj": 64}
    projections = {
        f"{layer}.{'mlp' if module in LINEARS[4:] else 'attn'}.{module}": (128 if module == "down_proj" else 64, width)
        for layer in range(2)
        for module, width in widths.items()
    }
    base = Base(
        name="phi",
        architecture="Phi3ForCausalLM",
        fingerprint="sha256:" + "0" * 64,
        dtype="float32",
        quantization=Quantization("none", 32),
        context_length=256,
        vocab_size=160,
        projections=projections,
    )
    manifest = convert(peft, base, tmp_path / "mine", name="mine")
    assert manifest.ranks.keys() == projections.keys()
    found = AdapterFormat.read_adapter(str(tmp_path / "mine" / manifest.file)).get_parameters()
    source = load_file(peft / "adapter_model.safetensors")
    packed = source[f"{PREFIX}.self_attn.qkv_proj.lora_B.weight"].T * 2
    parts = [found[f"model.layers.0.attn.{part}.lora_B.weight"].numpy() for part in ("q_proj", "k_proj", "v_proj")]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), packed)
    for part in ("gate_proj", "up_proj"):
        np.testing.assert_array_equal(
            found[f"model.layers.1.mlp.{part}.lora_A.weight"].numpy(),
            source["base_model.model.model.layers.1.mlp.gate_up_proj.lora_A.weight"].T,
        )
