"""What can be told of an adapter before any weights are loaded, and whether real adapters of PEFT pass or fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from loraplex.build.adapter import convert
from loraplex.build.checkpoint import read_tensors
from loraplex.build.peft_shapes import check_peft, target_of_config
from loraplex.build.support import FAMILIES
from loraplex.server.bundle import Base
from tests.build.conftest import Built
from tests.build.generation import Runner
from tests.checkpoints import Family, make_adapter, make_checkpoint, quiet, reference_logits

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture(scope="session")
def config(checkpoint: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((checkpoint / "config.json").read_bytes())
    return fields


def test_a_config_tells_the_projections_of_its_bundle(built: Built, config: Mapping[str, Any]) -> None:
    target = target_of_config(config, "tiny")
    assert target.architecture == built.bundle.manifest.base.architecture
    assert dict(target.projections) == built.bundle.manifest.base.projections


@pytest.mark.parametrize("name", ["four", "eight", "three", "partial"])
def test_good_adapters_pass(built: Built, config: Mapping[str, Any], name: str) -> None:
    assert check_peft(built.peft[name], config) == []


def test_weights_are_not_needed(built: Built, config: Mapping[str, Any], tmp_path: Path) -> None:
    """Only the header is read: the values may be anything."""
    peft = Path(shutil.copytree(built.peft["four"], tmp_path / "peft"))
    path = peft / "adapter_model.safetensors"
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes(raw[:header] + b"\xff" * (len(raw) - header))
    assert check_peft(peft, config) == []


def test_an_adapter_of_a_wider_base_names_both_sizes(config: Mapping[str, Any], tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "wide", "llama", hidden_size=96, intermediate_size=160)
    peft = make_adapter(wide, tmp_path / "peft", targets=["q_proj", "down_proj"])
    assert check_peft(peft, config) == [
        "model.layers.0.mlp.down_proj maps 160 to 96 features, 0.mlp.down_proj of the base maps 128 to 64 "
        "(and 1 more like it)",
        "model.layers.0.self_attn.q_proj maps 96 to 96 features, 0.attn.q_proj of the base maps 64 to 64 "
        "(and 1 more like it)",
    ]


def test_an_adapter_of_a_deeper_base(config: Mapping[str, Any], tmp_path: Path) -> None:
    deep = make_checkpoint(tmp_path / "deep", "llama", num_hidden_layers=3)
    peft = make_adapter(deep, tmp_path / "peft", targets=["q_proj", "v_proj"])
    assert check_peft(peft, config) == [
        "it adapts model.layers.2.self_attn.q_proj, the base has 2 layers (and 1 more like it)"
    ]


def test_an_adapter_of_another_family(built: Built, config: Mapping[str, Any], tmp_path: Path) -> None:
    phi = make_checkpoint(tmp_path / "phi", "phi3")
    peft = make_adapter(phi, tmp_path / "peft")
    (problem,) = check_peft(peft, config)
    assert problem == (
        "it adapts model.layers.0.mlp.gate_up_proj, LlamaForCausalLM has q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj (and 3 more like it)"
    )
    assert check_peft(peft, json.loads((phi / "config.json").read_bytes())) == []
    (other,) = check_peft(built.peft["eight"], json.loads((phi / "config.json").read_bytes()))
    assert "Phi3ForCausalLM has qkv_proj, gate_up_proj, o_proj, down_proj" in other


def test_every_problem_is_listed_at_once(config: Mapping[str, Any], tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "wide", "llama", hidden_size=96)
    peft = make_adapter(wide, tmp_path / "peft", targets=["q_proj"], bias="lora_only", modules_to_save=["lm_head"])
    problems = "\n".join(check_peft(peft, config))
    for words in ("modules_to_save", "bias=lora_only", "it adapts the LM head", "maps 96 to 96 features"):
        assert words in problems
    assert not any("\n" in problem for problem in check_peft(peft, config))


def test_a_folder_that_is_no_adapter(config: Mapping[str, Any], tmp_path: Path) -> None:
    assert check_peft(tmp_path, config) == [f"{tmp_path} is not a PEFT adapter, it has no adapter_config.json"]
    (problem,) = check_peft(tmp_path, {})[1:]
    assert problem == "config.json of the base does not tell its shape: KeyError('hidden_size')"


def test_every_option_of_the_installed_peft_is_known() -> None:
    """A new option of PEFT must be judged here before adapters that use it are taken."""
    import dataclasses

    with quiet():
        from peft import LoraConfig

    from loraplex.build.peft_folder import _HARMLESS, _REFUSED

    options = {field.name for field in dataclasses.fields(LoraConfig)}
    assert options - _HARMLESS - _REFUSED.keys() == set()


def variants() -> dict[str, tuple[dict[str, Any], str]]:
    with quiet():
        from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig

    return {
        "kasa": ({"kasa_config": KasaConfig()}, "KaSA"),
        "bdlora": ({"use_bdlora": BdLoraConfig(["q_proj"], nblocks=2, match_strict=False)}, "BD-LoRA"),
        "monteclora": ({"monteclora_config": MontecloraConfig()}, "MonteCLoRA"),
        "alora": ({"alora_invocation_tokens": [5, 6]}, "activated LoRA"),
        "lora_bias": ({"lora_bias": True}, "B has a bias of its own"),
        "replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layers were repeated"),
        "tokens": ({"trainable_token_indices": [3, 4]}, "token embeddings were trained"),
        "pissa": ({"init_lora_weights": "pissa"}, "it was started with pissa"),
    }


@pytest.mark.parametrize(
    "kind",
    ["kasa", "bdlora", "monteclora", "alora", "lora_bias", "replication", "tokens", "pissa"],
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(
    checkpoint: Path, config: Mapping[str, Any], tmp_path: Path, kind: str
) -> None:
    """Adapters as PEFT itself writes them."""
    options, words = variants()[kind]
    peft = make_adapter(checkpoint, tmp_path / kind, targets=["q_proj", "v_proj"], **options)
    assert words in "\n".join(check_peft(peft, config))


@pytest.mark.parametrize("start", ["velora", "orthogonal", "mica", "gaussian"])
def test_what_only_concerns_training_is_taken(
    built: Built, base: Base, config: Mapping[str, Any], tmp_path: Path, start: str
) -> None:
    with quiet():
        from peft.tuners.lora.config import VeloraConfig
    options: dict[str, Any] = {"velora_config": VeloraConfig(num_groups=4)} if start == "velora" else {}
    if start != "velora":
        options["init_lora_weights"] = start
    peft = make_adapter(built.checkpoint, tmp_path / "peft", targets=["q_proj", "up_proj"], **options)
    assert check_peft(peft, config) == []
    convert(peft, base, tmp_path / "mine", name="mine")
    runner = Runner(built.bundle.variant("generator"), {"mine": tmp_path / "mine" / "mine.onnx_adapter"})
    expected = reference_logits(built.checkpoint, peft, PROMPT)[-1]
    assert abs(runner.logits(PROMPT, "mine") - expected).max() < 1e-4


def test_the_known_architectures_are_those_that_can_be_built() -> None:
    from loraplex.build.peft_shapes import _PACKING

    assert FAMILIES.keys() >= _PACKING


@pytest.mark.parametrize("family", get_args(Family))
def test_shapes_of_every_family(family: Family, tmp_path: Path) -> None:
    """What config.json tells is what the checkpoint's weights are."""
    checkpoint = make_checkpoint(tmp_path, family)
    target = target_of_config(json.loads((checkpoint / "config.json").read_bytes()))
    stored = {
        name.removesuffix(".weight"): tensor.shape[::-1]
        for name, tensor in read_tensors(checkpoint).items()
        if name.endswith("_proj.weight")
    }
    told = {
        path: (next(iter(parts.values()))[0], sum(width for _, width in parts.values()))
        for path, parts in ((path, target.parts(path)) for path in map(target.path, target.projections))
    }
    assert told == stored
