"""The bundle that the routed lane is measured on: Phi-3.5-mini's shape with random weights, and random adapters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from loraplex.build.assembly import GENERATOR, PAGED, build_base
from loraplex.build.builder import DATA, run_builder
from loraplex.build.lora_inputs import add_lora_inputs
from loraplex.build.paged import TILE
from loraplex.build.weight_file import share_weights
from loraplex.server.bundle import (
    ADAPTER_MANIFEST,
    MANIFEST,
    AdapterManifest,
    Base,
    Bundle,
    Manifest,
    Quantization,
    Variant,
    WeightFile,
    sha256,
    write_manifest,
)

SHAPE = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "tie_word_embeddings": False,
}
"""Phi-3.5-mini's, but for its RoPE scaling, which does not change what a step costs."""
TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "eos_token_id": 500,
    "pad_token_id": 500,
}
"""Changes that make a model to try the benchmark with."""
GROUP = 128
"""Weights to a scale."""
DISTINCT = 8
"""Adapters that are made; where there are more they repeat, which changes nothing about the time."""


def make_bundle(
    folder: Path,
    adapters: int,
    rank: int = 16,
    *,
    tiny: bool = False,
    device: str = "cuda",
    shape: Mapping[str, int] | None = None,
) -> Bundle:
    """A bundle with adapters `a0`, `a1` ... on all seven linear layers; one that stands there is taken as it is.

    `shape` changes SHAPE.
    """
    output = folder / "bundle"
    if (output / MANIFEST).is_file():
        return Bundle.open(output)
    checkpoint = _make_checkpoint(folder / "checkpoint", SHAPE | (TINY if tiny else {}) | dict(shape or {}))
    if device == "cuda":
        bundle = _export(checkpoint, output)
    else:
        bundle = build_base(checkpoint, output, name="phi", precision="int4")
    for index in range(adapters):
        _make_adapter(bundle, index, rank)
    folders = {f"a{index}": f"adapters/a{index}" for index in range(adapters)}
    write_manifest(output / MANIFEST, msgspec.structs.replace(bundle.manifest, adapters=folders))
    return Bundle.open(output)


def _export(checkpoint: Path, output: Path) -> Bundle:
    """What `build_base` writes, but quantized by onnxruntime's fastest rounding and without trying it out: seconds
    instead of minutes, and a step costs the same.
    """
    generator, paged = output / GENERATOR, output / PAGED
    options = {"algo_config": "default", "block_size": GROUP, "prune_lm_head": "true", "fuse_mlp_gate_up": "true"}
    run_builder(checkpoint, generator, "int4", "cuda", options)
    run_builder(checkpoint, paged, "int4", "cuda", options | {"use_paged_attention": "true", "paged_block_size": TILE})
    share_weights([generator, paged])
    shape = json.loads((checkpoint / "config.json").read_text("utf-8"))
    base = Base(
        name="phi",
        architecture="Phi3ForCausalLM",
        fingerprint="sha256:" + "0" * 64,
        dtype="float16",
        quantization=Quantization("rtn", 4, GROUP),
        context_length=shape["max_position_embeddings"],
        vocab_size=shape["vocab_size"],
        projections=add_lora_inputs(generator),
    )
    weights = WeightFile(f"{GENERATOR}/{DATA}", (generator / DATA).stat().st_size)
    variants: dict[Variant, str] = {"generator": GENERATOR, "paged": PAGED}
    write_manifest(output / MANIFEST, Manifest(1, base, variants, {}, weights))
    return Bundle.open(output)


def _make_checkpoint(folder: Path, shape: dict[str, int | bool]) -> Path:
    """A float16 checkpoint, 7.6 GB in full size."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model("phi3", sliding_window=None, **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model = model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("norm.weight"):
                parameter.fill_(1)
    model.save_pretrained(folder, max_shard_size="100GB")
    words = {f"w{index}": index for index in range(shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, "w0"))
    end = f"w{shape['eos_token_id']}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token=end).save_pretrained(folder)
    return folder


def _make_adapter(bundle: Bundle, index: int, rank: int) -> None:
    from onnxruntime import AdapterFormat, OrtValue

    base = bundle.manifest.base
    folder = bundle.folder / "adapters" / f"a{index}"
    folder.mkdir(parents=True)
    file = folder / f"a{index}.onnx_adapter"
    if index >= DISTINCT:
        like = bundle.folder / "adapters" / f"a{index % DISTINCT}"
        os.link(like / f"a{index % DISTINCT}.onnx_adapter", file)
        known = msgspec.json.decode((like / ADAPTER_MANIFEST).read_bytes(), type=AdapterManifest)
        write_manifest(folder / ADAPTER_MANIFEST, msgspec.structs.replace(known, file=file.name))
        return
    random = np.random.default_rng(index)
    values = {}
    for projection, (rows, columns) in base.projections.items():
        for side, shape in (("A", (rows, rank)), ("B", (rank, columns))):
            weights = (random.random(shape, np.float32) * 0.02 - 0.01).astype(base.dtype)
            values[f"model.layers.{projection}.lora_{side}.weight"] = OrtValue.ortvalue_from_numpy(weights)
    adapter = AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(file))
    ranks = dict.fromkeys(base.projections, rank)
    alphas = dict.fromkeys(base.projections, float(rank))
    write_manifest(
        folder / ADAPTER_MANIFEST,
        AdapterManifest(1, file.name, sha256(file), base.fingerprint, base.dtype, ranks, alphas),
    )
