"""What of PEFT is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loraplex.build.adapter import convert
from loraplex.server.bundle import Base
from loraplex.server.errors import AdapterInvalid
from tests.build.test_adapter import PREFIX, change_config
from tests.checkpoints import make_adapter


def change_weights(peft: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    path = peft / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(peft: Path, base: Base, folder: Path, name: str = "mine") -> str:
    """The message of a refused conversion, which must have left nothing."""
    with pytest.raises(AdapterInvalid) as info:
        convert(peft, base, folder / "out", name=name)
    assert not (folder / "out").exists()
    assert "\n" not in info.value.message
    return info.value.message


def test_values_that_overflow_the_dtype_of_the_base(peft: Path, base: Base, tmp_path: Path) -> None:
    change_weights(peft, lambda tensors: tensors[f"{PREFIX}.mlp.up_proj.lora_A.weight"].fill_(70000.0))
    narrow = msgspec.structs.replace(base, dtype="float16")
    message = refusal(peft, narrow, tmp_path)
    assert message == "adapter mine: 0.mlp.up_proj.lora_A overflows float16"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "its type is IA3, only LORA can be served"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layers were repeated"),
        ({"alora_invocation_tokens": [4, 5]}, "activated LoRA"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"option_of_tomorrow": {"a": 1}}, "option_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "a quantized one that LoftQ made"),
        ({"init_lora_weights": "lora_ga"}, "it was started with lora_ga"),
        ({"arrow_config": {"top_k": 1}}, "Arrow routes every token"),
        ({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS"),
        ({"r": 0}, "is not a LoRA config"),
        ({"r": None}, "is not a LoRA config"),
        ({"lora_alpha": "much"}, "is not a LoRA config"),
        ({"rank_pattern": ["q_proj"]}, "is not a LoRA config"),
        ({"rank_pattern": {"q_proj(": 4}}, "is not a LoRA config"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "is not a LoRA config: q_proj is nan"),
        ({"lora_alpha": 1e39}, "overflows float32"),
        ({"r": 5}, "has an A of rank 4 and a B of rank 4, its config says 5"),
        ({"rank_pattern": {"v_proj": 9}}, "model.layers.0.self_attn.v_proj has an A of rank 4"),
    ],
)
def test_refused_config(peft: Path, base: Base, tmp_path: Path, fields: dict[str, object], words: str) -> None:
    change_config(peft, **fields)
    message = refusal(peft, base, tmp_path)
    assert message.startswith("adapter mine: ")
    assert words in message


Q_A, Q_B = f"{PREFIX}.self_attn.q_proj.lora_A.weight", f"{PREFIX}.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(Q_B), "model.layers.0.self_attn.q_proj has no lora_B"),
        (lambda w: w.pop(Q_A), "model.layers.0.self_attn.q_proj has no lora_A"),
        (lambda w: w[Q_A][0].fill_(float("nan")), "q_proj.lora_A has values that are not finite"),
        (lambda w: w[Q_B][0].fill_(float("inf")), "q_proj.lora_B has values that are not finite"),
        (lambda w: w.update({Q_A: w[Q_A][:, :-1].clone()}), "maps 63 to 64 features, 0.attn.q_proj of tiny maps 64 to"),
        (lambda w: w.update({Q_B: w[Q_B][:-1].clone()}), "maps 64 to 63 features, 0.attn.q_proj of tiny maps 64 to 64"),
        (lambda w: w.update({Q_A: w[Q_A][0].clone()}), "q_proj.lora_A has the shape [64]"),
        (lambda w: w.update({Q_A.replace("lora_A.weight", "lora_magnitude_vector.weight"): w[Q_A][0].clone()}), "DoRA"),
        (lambda w: w.update({Q_B.replace("weight", "bias"): w[Q_B][:, 0].clone()}), "B has a bias of its own"),
        (lambda w: w.update({"base_model.model.lm_head.lora_A.weight": w[Q_A].clone()}), "it adapts the LM head"),
        (
            lambda w: w.update({"base_model.model.model.embed_tokens.lora_embedding_A": w[Q_A].clone()}),
            "it adapts the embeddings",
        ),
        (lambda w: w.update({"base_model.model.model.norm.weight": w[Q_A][0].clone()}), "a whole trained module"),
        (lambda w: w.update({Q_A.replace("layers.0", "layers.9"): w[Q_A].clone()}), "layers.9.self_attn.q_proj has no"),
        (lambda w: w.update({Q_A.replace("q_proj", "z_proj"): w[Q_A].clone()}), "z_proj has no lora_B"),
        (
            lambda w: w.update({Q_A.replace("layers.0", "towers.0"): w[Q_A].clone()}),
            "it adapts what is no linear layer of the decoder",
        ),
        (lambda w: w.clear(), "adapter_model.safetensors holds no LoRA weights"),
    ],
)
def test_refused_weights(
    peft: Path, base: Base, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    change_weights(peft, change)
    message = refusal(peft, base, tmp_path)
    assert message.startswith("adapter mine: ")
    assert words in message


def test_a_layer_that_the_base_does_not_have(peft: Path, base: Base, tmp_path: Path) -> None:
    def move(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("layers.1", "layers.2")] = tensors.pop(name)

    change_weights(peft, move)
    message = refusal(peft, base, tmp_path)
    assert message == "adapter mine: it adapts model.layers.2.mlp.down_proj, tiny has 2 layers (and 6 more like it)"


def test_packed_weights_for_a_base_that_packs_nothing(peft: Path, base: Base, tmp_path: Path) -> None:
    def pack(tensors: dict[str, Any]) -> None:
        import torch

        parts = [tensors.pop(f"{PREFIX}.mlp.{part}.lora_B.weight") for part in ("gate_proj", "up_proj")]
        a = [tensors.pop(f"{PREFIX}.mlp.{part}.lora_A.weight") for part in ("gate_proj", "up_proj")]
        tensors[f"{PREFIX}.mlp.gate_up_proj.lora_A.weight"] = a[0]
        tensors[f"{PREFIX}.mlp.gate_up_proj.lora_B.weight"] = torch.cat(parts)

    change_weights(peft, pack)
    assert refusal(peft, base, tmp_path) == (
        "adapter mine: it adapts model.layers.0.mlp.gate_up_proj, "
        "LlamaForCausalLM has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


def test_refused_folder(peft: Path, base: Base, tmp_path: Path) -> None:
    weights, config = peft / "adapter_model.safetensors", peft / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "adapter_model.safetensors is not a whole safetensors file" in refusal(peft, base, tmp_path)
    weights.unlink()
    assert "has no adapter_model.safetensors" in refusal(peft, base, tmp_path)
    (peft / "adapter_model.bin").write_bytes(b"pickle")
    assert "holds pickled weights, which can run code" in refusal(peft, base, tmp_path)
    config.write_text("{")
    assert "adapter_config.json cannot be read" in refusal(peft, base, tmp_path)
    config.write_text("[]")
    assert "adapter_config.json is not a LoRA config" in refusal(peft, base, tmp_path)
    config.unlink()
    assert "is not a PEFT adapter, it has no adapter_config.json" in refusal(peft, base, tmp_path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "new\nline", "x" * 97])
def test_refused_name(peft: Path, base: Base, tmp_path: Path, name: str) -> None:
    assert "cannot be an adapter's name" in refusal(peft, base, tmp_path, name)


def test_real_dora_and_embedding_adapters_are_refused(checkpoint: Path, base: Base, tmp_path: Path) -> None:
    """As PEFT itself writes them, not as this file makes them up."""
    dora = make_adapter(checkpoint, tmp_path / "dora", use_dora=True)
    assert "DoRA" in refusal(dora, base, tmp_path)
    embedding = make_adapter(checkpoint, tmp_path / "embedding", targets=["embed_tokens", "q_proj"])
    assert "it adapts the embeddings" in refusal(embedding, base, tmp_path)
    head = make_adapter(checkpoint, tmp_path / "head", targets=["lm_head"])
    assert "it adapts the LM head" in refusal(head, base, tmp_path)
    saved = make_adapter(checkpoint, tmp_path / "saved", modules_to_save=["lm_head"])
    assert "modules_to_save" in refusal(saved, base, tmp_path)
    bias = make_adapter(checkpoint, tmp_path / "bias", bias="lora_only")
    assert "bias=lora_only" in refusal(bias, base, tmp_path)
    olora = make_adapter(checkpoint, tmp_path / "olora", init_lora_weights="olora")
    assert "it was started with olora" in refusal(olora, base, tmp_path)
