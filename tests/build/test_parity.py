"""The exported graph with its adapters gives PEFT's tokens and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from loraplex.build.assembly import build_bundle
from tests.build.conftest import Built
from tests.build.generation import Runner, expected_tokens
from tests.checkpoints import Family, make_adapter, make_checkpoint, reference_logits

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]
LONG = [0] + [8 + 11 * position % 150 for position in range(90)]


def check_parity(bundle: Path, checkpoint: Path, peft: dict[str, Path], prompt: list[int] = PROMPT) -> None:
    files = {name: bundle / "adapters" / name / f"{name}.onnx_adapter" for name in peft}
    runner = Runner(bundle / "base" / "generator", files)
    base = runner.logits(prompt)
    for name in (None, *peft):
        adapter = peft[name] if name is not None else None
        logits = runner.logits(prompt, name)
        np.testing.assert_allclose(logits, reference_logits(checkpoint, adapter, prompt)[-1], rtol=0, atol=1e-4)
        assert name is None or np.abs(logits - base).max() > 0.1, "the adapter changes too little to show a mistake"
        assert runner.tokens(prompt, 24, name) == expected_tokens(checkpoint, adapter, prompt, 24), name


def test_llama_with_every_kind_of_adapter(built: Built) -> None:
    check_parity(built.bundle.folder, built.checkpoint, built.peft)
    check_parity(built.bundle.folder, built.checkpoint, built.peft, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in get_args(Family) if family != "llama"])
def test_family(family: Family, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    packed = family == "phi3"
    peft = {
        "all": make_adapter(checkpoint, tmp_path / "all", rank=8, alpha=4, seed=1),
        "partial": make_adapter(
            checkpoint,
            tmp_path / "partial",
            targets=["qkv_proj", "down_proj"] if packed else ["k_proj", "gate_proj"],
            rank_pattern={"qkv_proj" if packed else "k_proj": 3},
            alpha_pattern={"layers.1.mlp.down_proj" if packed else "gate_proj": 24},
            use_rslora=True,
            seed=2,
        ),
    }
    bundle = build_bundle(checkpoint, peft, tmp_path / "bundle", name="tiny", precision="float32")
    assert len(bundle.manifest.base.projections) == 2 * 7
    check_parity(bundle.folder, checkpoint, peft)
    check_parity(bundle.folder, checkpoint, peft, LONG)


LONGROPE = {
    "rope_type": "longrope",
    "type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * step for step in range(8)],
    "long_factor": [1.5 + 0.5 * step for step in range(8)],
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("llama", {"rope_parameters": LLAMA3}, id="llama3 rope"),
        pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="biases everywhere"),
        pytest.param("llama", {"num_key_value_heads": 4, "head_dim": 32}, id="wide heads, no groups"),
        pytest.param("qwen2", {"tie_word_embeddings": True}, id="tied embeddings"),
        pytest.param(
            "qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, id="window in a layer"
        ),
        pytest.param(
            "phi3",
            {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "max_position_embeddings": 256},
            id="longrope",
        ),
        pytest.param("phi3", {"partial_rotary_factor": 0.5, "hidden_size": 128}, id="partial rotary"),
        pytest.param(
            "phi3",
            {
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "partial_rotary_factor": 0.75,
                "rope_parameters": LONGROPE
                | {
                    "partial_rotary_factor": 0.75,
                    "short_factor": [1.0 + 0.05 * step for step in range(24)],
                    "long_factor": [1.5 + 0.5 * step for step in range(24)],
                },
                "original_max_position_embeddings": 64,
            },
            id="Phi-4-mini",
        ),
        pytest.param(
            "llama",
            {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
            id="SmolLM 2",
        ),
    ],
)
def test_variant(family: Family, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, **changes)
    peft = {"all": make_adapter(checkpoint, tmp_path / "all")}
    bundle = build_bundle(checkpoint, peft, tmp_path / "bundle", name="tiny", precision="float32")
    check_parity(bundle.folder, checkpoint, peft)
    check_parity(bundle.folder, checkpoint, peft, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_context_ends_with_a_window_that_the_graph_lacks(family: Family, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, sliding_window=48)
    peft = {"all": make_adapter(checkpoint, tmp_path / "all")}
    bundle = build_bundle(checkpoint, peft, tmp_path / "bundle", name="tiny", precision="float32")
    assert bundle.manifest.base.context_length == 48
    check_parity(bundle.folder, checkpoint, peft)


def test_bfloat16_checkpoint_and_adapter(tmp_path: Path) -> None:
    """Both are widened, exactly, to the float32 of the graph."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.checkpoints import quiet

    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    adapter = make_adapter(checkpoint, tmp_path / "all")
    for file in (checkpoint / "model.safetensors", adapter / "adapter_model.safetensors"):
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with quiet():
        bundle = build_bundle(checkpoint, {"all": adapter}, tmp_path / "bundle", name="tiny", precision="float32")
    check_parity(bundle.folder, checkpoint, {"all": adapter})
