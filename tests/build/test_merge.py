"""Bundles of one model with an adapter merged into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from loraplex.build.assembly import add_adapters, build_base
from loraplex.build.errors import BuildFailed, CheckpointUnsupported
from loraplex.build.merge import merge_adapter
from loraplex.build.verification import Effort, verify_bundle
from loraplex.server.bundle import Bundle
from tests.awq import make_awq
from tests.build.conftest import Built
from tests.build.generation import Runner, expected_tokens
from tests.checkpoints import Family, make_adapter, make_checkpoint, quiet, reference_logits

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.mark.parametrize("family", ["llama", pytest.param("phi3", marks=pytest.mark.slow)])
def test_single_model(family: Family, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    peft = make_adapter(checkpoint, tmp_path / "peft", rank=3, alpha=9, use_rslora=True)
    with quiet():
        merged = merge_adapter(checkpoint, peft, tmp_path / "merged", name="one")
    expected = reference_logits(checkpoint, peft, PROMPT)
    np.testing.assert_allclose(reference_logits(merged, None, PROMPT), expected, rtol=0, atol=1e-3)
    bundle = build_base(merged, tmp_path / "bundle", name="tiny", precision="float32", merged="one")
    assert Bundle.open(tmp_path / "bundle") == bundle
    assert (bundle.manifest.base.merged, bundle.manifest.base.projections) == ("one", {})
    graph = onnx.load(bundle.variant("generator") / "model.onnx", load_external_data=False).graph
    assert not [value.name for value in graph.input if "lora" in value.name]
    assert Runner(bundle.variant("generator")).tokens(PROMPT, 24) == expected_tokens(checkpoint, peft, PROMPT, 24)
    with quiet():
        found = verify_bundle(bundle, merged, {}, effort=Effort(prompts=2, tokens=8))
    assert [(each.model, each.lane) for each in found.agreements] == [("tiny", "exact")]
    with pytest.raises(BuildFailed, match="tiny has the adapter one merged into it and takes no others"):
        add_adapters(bundle, {"two": peft}, tmp_path / "more")


def test_served(built: Built, tmp_path: Path) -> None:
    from loraplex.server.engine.batched import BatchedLane

    with quiet():
        merged = merge_adapter(built.checkpoint, built.peft["four"], tmp_path / "merged", name="four")
    bundle = build_base(merged, tmp_path / "bundle", name="tiny", precision="int4", merged="four")
    BatchedLane(bundle.variant("generator"), threads=1, prefill_chunk=16)


def test_refused(built: Built, tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnsupported, match="is quantized already: merge the adapter before"):
        merge_adapter(make_awq(built.checkpoint, tmp_path / "awq"), built.peft["four"], tmp_path / "out", name="four")
    from safetensors.torch import load_file, save_file

    spoiled = Path(shutil.copytree(built.peft["four"], tmp_path / "spoiled"))
    tensors = load_file(spoiled / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].fill_(float("nan"))
    save_file(tensors, spoiled / "adapter_model.safetensors")
    with quiet(), pytest.raises(BuildFailed, match="adapter four cannot be merged: "):
        merge_adapter(built.checkpoint, spoiled, tmp_path / "out", name="four")
    assert not (tmp_path / "out").exists()
