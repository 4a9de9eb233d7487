"""Checkpoint -> PagedAttention graph for the routed lane on CUDA, with the model builder of onnxruntime-genai 0.18.

The graph knows nothing of adapters: the server links them in (`loraplex.server.engine.linker`). Linear layers that
read the same tensor are one layer here, since every launch counts in a decode step: q, k and v by the builder's
default, gate and up by an option of its own.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from loraplex.build.builder import CONFIG, MODEL, Precision, limit_context, run_builder
from loraplex.build.checkpoint import locate
from loraplex.build.errors import ExportFailed
from loraplex.build.gate_up import fuse_gate_up
from loraplex.build.support import check_checkpoint
from loraplex.build.weight_format import Algorithm, Head, WeightFormat

TILE = 256
"""Tokens to a KV block: the FlashAttention kernel for paged caches takes multiples of its tile, 256 up to head size
64, 128 up to 128 and 64 beyond."""


def export_paged(
    checkpoint: Path | str,
    output: Path,
    *,
    precision: Precision,
    group_size: int | None = None,
    algorithm: Algorithm | None = None,
    head: Head = "int8",
    log: Path | None = None,
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json, the tokenizer and the chat template into `output`.

    Activations are float16; the options are those of `export.export_base`. Runs without a GPU; nothing is loaded or
    run. Raises CheckpointUnsupported or ExportFailed.
    """
    folder = locate(checkpoint)
    config = check_checkpoint(folder)
    weights = WeightFormat.choose(
        folder,
        precision,
        "cuda",
        awq_group_size=config.awq_group_size,
        group_size=group_size,
        algorithm=algorithm,
        head=head,
    )
    options = weights.options() | {
        "use_paged_attention": "true",
        "paged_block_size": TILE,
        "prune_lm_head": "true",
        "fuse_mlp_gate_up": weights.algorithm != "awq",
    }
    run_builder(folder, output, precision, "cuda", options, log)
    if not (output / MODEL).is_file() or not (output / CONFIG).is_file():
        raise ExportFailed(f"the model builder finished without writing {output / MODEL}")
    graph = onnx.load(output / MODEL, load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    if "PagedAttention" not in operators or not any(value.name == "logits_indices" for value in graph.input):
        raise ExportFailed(f"{output / MODEL} has no paged attention or computes every token's logits")
    weights.check(graph)
    if weights.algorithm == "awq":
        fuse_gate_up(output)
    if config.window is not None:
        limit_context(output / CONFIG, config.context_length)
