"""Checkpoint -> ONNX folder for the generator lane, with the model builder of onnxruntime-genai 0.18.

The builder prints where others raise, ignores options it does not know without a word, and knows of features, such as
RoPE scaling in some families, only to write graphs that compute something else. So what it cannot do right is refused
beforehand, and nothing it says is trusted afterwards: the files are opened, the attributes of every quantized node are
compared with what was asked for, and the model is loaded and run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx

from loraplex.build.builder import CONFIG, DATA, MODEL, Device, Precision, limit_context, run_builder
from loraplex.build.checkpoint import locate
from loraplex.build.errors import ExportFailed, first_line
from loraplex.build.gate_up import fuse_gate_up
from loraplex.build.support import check_checkpoint
from loraplex.build.weight_format import AccuracyLevel, Algorithm, Head, WeightFormat
from loraplex.server.bundle import Dtype, Quantization, Sampling


@dataclass(frozen=True)
class Export:
    """What was written: the fields of the bundle's Base that the export decides."""

    architecture: str
    dtype: Dtype
    quantization: Quantization
    context_length: int
    vocab_size: int
    sampling: Sampling


def export_base(
    checkpoint: Path | str,
    output: Path,
    *,
    precision: Precision,
    device: Device = "cpu",
    group_size: int | None = None,
    algorithm: Algorithm | None = None,
    accuracy_level: AccuracyLevel | None = None,
    head: Head = "int8",
    prune_lm_head: bool = True,
    log: Path | None = None,
) -> Export:
    """Write model.onnx, model.onnx.data, genai_config.json, the tokenizer and the chat template into `output`.

    `checkpoint` is as for `checkpoint.locate`; one quantized by AWQ keeps its int4 weights. `prune_lm_head` makes the
    graph give logits for the last token of each sequence only, [batch, 1, vocabulary]. What builder and libraries print
    goes to `log`. On CUDA gate and up are one layer, as in `paged.export_paged`, so that both graphs have the same
    weights.

    The other options are those of `WeightFormat`, and concern int4 alone. The defaults are what measured best on CPU
    with a random Llama of 7M parameters, by tokens/s and KL divergence from the float32 model: accuracy level 4 was
    nearly three times as fast as 1 (1150 against 400) at the same divergence (0.90 and 0.88); k_quant came closer than
    rtn (0.90 against 1.26); an int8 head cost nothing that could be measured at a quarter of the size, an int4 head
    0.22.

    Raises CheckpointUnsupported before anything is written, ExportFailed afterwards; what is in `output` is then void.
    """
    folder = locate(checkpoint)
    config = check_checkpoint(folder)
    weights = WeightFormat.choose(
        folder,
        precision,
        device,
        awq_group_size=config.awq_group_size,
        group_size=group_size,
        algorithm=algorithm,
        head=head,
        accuracy_level=accuracy_level,
    )
    options = weights.options() | {"prune_lm_head": prune_lm_head}
    if device == "cuda":
        # Norms of q and k inside the attention would keep the graph from running, and from being verified, on a CPU.
        # Paged graphs with such norms have q, k and v apart, and this one is to have the same weights.
        normed = config.architecture == "Qwen3ForCausalLM"
        options |= {
            "fuse_qk_norm_gqa": "false",
            "fuse_qkv": not normed,
            "fuse_mlp_gate_up": weights.algorithm != "awq",
        }
    run_builder(folder, output, precision, device, options, log)
    weights.check(_check_files(output))
    if device == "cuda" and weights.algorithm == "awq":
        fuse_gate_up(output)
    if config.window is not None:
        limit_context(output / CONFIG, config.context_length)
    run_once(output)
    return Export(
        architecture=config.architecture,
        dtype=weights.dtype,
        quantization=weights.quantization,
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        sampling=_sampling(folder),
    )


def run_once(folder: Path, adapters: Mapping[str, Path] | None = None) -> None:
    """Load an exported folder and run one token through it, then through each adapter (file by name).

    A graph for CUDA runs on the CPU where there is no GPU. Raises ExportFailed where anything of that fails or the
    logits are not finite.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy as np
    import onnxruntime_genai as og

    from loraplex.server.engine import gpu

    name = "the base"
    try:
        config = og.Config(str(folder))
        if gpu.missing():
            config.clear_providers()
        model = og.Model(config)
        loaded = og.Adapters(model)
        for adapter, file in (adapters or {}).items():
            loaded.load(str(file), adapter)
        for name in ("the base", *(adapters or {})):
            parameters = og.GeneratorParams(model)
            parameters.set_search_options(max_length=4, do_sample=False)
            generator = og.Generator(model, parameters)
            if name in (adapters or {}):
                generator.set_active_adapter(loaded, name)
            generator.append_tokens(np.zeros((1, 2), np.int32))
            if not np.isfinite(generator.get_logits()).all():
                raise ExportFailed(f"{folder} gives logits that are not finite ({name})")
            generator.generate_next_token()
            del generator
    except RuntimeError as error:
        raise ExportFailed(f"{folder} was written but does not run ({name}): {first_line(error)}") from error


def _check_files(output: Path) -> onnx.GraphProto:
    for name in (MODEL, DATA, CONFIG, "tokenizer.json", "tokenizer_config.json"):
        if not (output / name).is_file():
            raise ExportFailed(f"the model builder finished without writing {output / name}")
    graph = onnx.load(output / MODEL, load_external_data=False).graph
    size = (output / DATA).stat().st_size
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries and entries["location"] != DATA:
            raise ExportFailed(f"{output / MODEL} keeps {tensor.name} in {entries['location']} instead of {DATA}")
        if entries and int(entries["offset"]) + int(entries["length"]) > size:
            raise ExportFailed(f"{output / DATA} is too short for {tensor.name}")
    return graph


def _sampling(folder: Path) -> Sampling:
    """The checkpoint's own sampling defaults, as far as its generation_config.json has them and they are valid."""
    try:
        config: dict[str, Any] = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):
        return Sampling()
    fields = ("repetition_penalty", *(("temperature", "top_p", "top_k") if config.get("do_sample") else ()))
    try:
        return msgspec.convert({field: config.get(field) for field in fields}, Sampling)
    except msgspec.ValidationError:
        return Sampling()
