"""Checkpoints as hubs have them: sharded, with several end tokens, with more templates or tokens than needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex.build.assembly import build_bundle
from loraplex.build.errors import BuildFailed
from loraplex.build.verification import Effort, HeldOut, verify_bundle
from loraplex.server.bundle import Bundle, Sampling
from loraplex.server.text.tokenizer import Text
from tests.checkpoints import make_adapter, make_checkpoint, make_tokenizer, quiet

LITTLE = Effort(prompts=2, tokens=8)


def export(checkpoint: Path, peft: dict[str, Path] | None = None) -> Bundle:
    return build_bundle(checkpoint, peft or {}, checkpoint.parent / "bundle", name="tiny", precision="float32")


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_shards_of_bfloat16_with_a_tied_head_and_several_end_tokens(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tie_word_embeddings=True, rope_parameters=scaling)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="100KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    change(checkpoint / "generation_config.json", eos_token_id=[1, 7, 9], do_sample=True, temperature=0.6, top_p=0.9)
    peft = {"a": make_adapter(checkpoint, tmp_path / "a", targets=["q_proj", "v_proj"], use_rslora=True)}
    bundle = export(checkpoint, peft)
    with quiet():
        assert verify_bundle(bundle, checkpoint, peft, effort=LITTLE).passed
    config = json.loads((bundle.variant("generator") / "genai_config.json").read_bytes())
    assert config["model"]["eos_token_id"] == [1, 7, 9]
    assert bundle.manifest.base.sampling == Sampling(temperature=0.6, top_p=0.9)


def test_several_chat_templates_of_which_the_default_is_served(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    template = checkpoint / "chat_template.jinja"
    named = [{"name": "tool_use", "template": "with tools"}, {"name": "default", "template": template.read_text()}]
    change(checkpoint / "tokenizer_config.json", chat_template=named)
    template.unlink()
    bundle = export(checkpoint)
    with quiet():
        assert verify_bundle(bundle, checkpoint, {}, effort=LITTLE).passed
    served = Text(bundle.variant("generator")).template
    assert served is not None
    assert served.render([{"role": "user", "content": "w9"}]) == "<s><|user|>w9<|end|><|assistant|>"


def test_a_tokenizer_with_tokens_that_the_model_lacks(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    make_tokenizer(checkpoint, 10_000)
    bundle = export(checkpoint)
    with quiet():
        assert verify_bundle(bundle, checkpoint, {}, effort=LITTLE).passed
        with pytest.raises(BuildFailed, match=r"held-out text has token 170 \('w170'\), and the base has 160 tokens"):
            verify_bundle(bundle, checkpoint, {}, held_out=HeldOut(["w9 w170"]), effort=LITTLE)


def test_held_out_text_longer_than_the_context(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", max_position_embeddings=40)
    bundle = export(checkpoint)
    with quiet():
        found = verify_bundle(bundle, checkpoint, {}, held_out=HeldOut(["w9 " * 100]), effort=LITTLE)
    assert [row.tokens for row in found.perplexities] == [38, 38]
