"""Checkpoint -> PagedAttention graph for the routed lane on CUDA, with the model builder of onnxruntime-genai 0.18.

The graph knows nothing of adapters: the server links them in (`loraplex.server.engine.linker`). Linear layers that
read the same tensor are one layer here, since every launch counts in a decode step: q, k and v by the builder's
default, gate and up by an option of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx

from loraplex.build.checkpoint import locate
from loraplex.build.errors import ExportFailed
from loraplex.build.export import HEAD_NODE, MODEL, limit_context, noise_to
from loraplex.build.support import check_checkpoint, check_quantizable

Precision = Literal["float16", "int4"]
Algorithm = Literal["default", "rtn", "k_quant"]

TILE = 256
"""Tokens to a KV block: the FlashAttention kernel for paged caches takes multiples of its tile, 256 up to head size
64, 128 up to 128 and 64 beyond."""


def export_paged(
    checkpoint: Path | str,
    output: Path,
    *,
    precision: Precision,
    group_size: int = 128,
    algorithm: Algorithm = "default",
    quantize_head: bool = True,
    log: Path | None = None,
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json, the tokenizer and the chat template into `output`.

    Activations are float16. `group_size` (weights to a scale) and `algorithm` concern int4 alone; `default` is
    onnxruntime's symmetric rounding to nearest, which took seconds where `k_quant` took minutes. `quantize_head`
    makes the LM head int4 too. `checkpoint` is as for `checkpoint.locate`; what the builder prints goes to `log`.
    Runs without a GPU; nothing is loaded or run. Raises CheckpointUnsupported or ExportFailed.
    """
    folder = locate(checkpoint)
    config = check_checkpoint(folder)
    options: dict[str, object] = {
        "hf_token": "false",
        "hf_remote": "false",
        "use_paged_attention": "true",
        "paged_block_size": TILE,
        "prune_lm_head": "true",
        "shared_embeddings": "false",
        # Bounded caches would hide the first token, which routing attention has to see.
        "windowed_kv_cache": "false",
        "fuse_mlp_gate_up": "true",
    }
    if precision == "int4":
        check_quantizable(folder, group_size, algorithm)
        options |= {"algo_config": algorithm, "block_size": group_size}
        if not quantize_head:
            options["nodes_to_exclude"] = HEAD_NODE
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loraplex-paged-") as scratch:
        path = log or Path(scratch) / "export.log"
        with path.open("w", encoding="utf-8") as stream:
            try:
                with noise_to(stream):
                    _run_builder(folder, output, precision, options, Path(scratch) / "cache")
            except Exception as error:
                failure = ExportFailed(f"the model builder failed on {folder}: {type(error).__name__}: {error}")
                failure.add_note("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[-20:]))
                raise failure from error
    _check(output, precision, group_size)
    if config.window is not None:
        limit_context(output / "genai_config.json", config.context_length)


def _run_builder(folder: Path, output: Path, precision: Precision, options: Mapping[str, object], cache: Path) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    positional = (None, str(folder), str(output), {"float16": "fp16", "int4": "int4"}[precision], "cuda", str(cache))
    create_model(*positional, **parse_extra_options(*positional, [f"{key}={value}" for key, value in options.items()]))


def _check(output: Path, precision: Precision, group_size: int) -> None:
    """The builder ignores options it does not know without a word, so what they ask for is looked up in the graph."""
    if not (output / MODEL).is_file() or not (output / "genai_config.json").is_file():
        raise ExportFailed(f"the model builder finished without writing {output / MODEL}")
    graph = onnx.load(output / MODEL, load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    if "PagedAttention" not in operators or not any(value.name == "logits_indices" for value in graph.input):
        raise ExportFailed(f"{output / MODEL} has no paged attention or computes every token's logits")
    sizes = {
        attribute.i
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    if sizes != ({group_size} if precision == "int4" else set()):
        raise ExportFailed(f"{output / MODEL} has quantization groups of {sorted(sizes)}, not {group_size}")
