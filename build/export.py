"""Checkpoint -> ONNX folder for the generator lane on CPU, with the model builder of onnxruntime-genai 0.18.

The builder prints where others raise, ignores options it does not know without a word, and knows of features, such as
RoPE scaling in some families, only to write graphs that compute something else. So what it cannot do right is refused
beforehand, and nothing it says is trusted afterwards: the files are opened, the attributes of every quantized node are
compared with what was asked for, and the model is loaded and run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec
import onnx

from loraplex.build.checkpoint import locate
from loraplex.build.errors import ExportFailed, first_line
from loraplex.build.support import check_checkpoint, check_quantizable
from loraplex.server.bundle import Dtype, Quantization, Sampling

Precision = Literal["float32", "int4"]
Algorithm = Literal["rtn", "k_quant"]
Head = Literal["float32", "int8"]

MODEL = "model.onnx"
DATA = "model.onnx.data"
HEAD_NODE = "/lm_head/MatMul"


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
    group_size: int = 32,
    algorithm: Algorithm = "k_quant",
    accuracy_level: Literal[0, 1, 4] = 4,
    head: Head = "float32",
    prune_lm_head: bool = True,
    log: Path | None = None,
) -> Export:
    """Write model.onnx, model.onnx.data, genai_config.json, the tokenizer and the chat template into `output`.

    `checkpoint` is as for `checkpoint.locate`. `prune_lm_head` makes the graph give logits for the last token of each
    sequence only, [batch, 1, vocabulary]. What builder and libraries print goes to `log`; standard output and error
    and the logging handlers of the whole process are turned there meanwhile.

    The other options concern int4 alone. `group_size` is 16, 32, 64, 128 or 256 weights to a scale. `accuracy_level` 4
    rounds activations to int8 block by block, 1 computes in float32, 0 leaves it to onnxruntime. `head` is the
    precision of the LM head's weights; the embedding stays float32. The defaults are what measured best on CPU with a
    random Llama of 7M parameters, by tokens/s and KL divergence from the float32 model: level 4 was nearly three times
    as fast as 1 (1150 against 400) at the same divergence (0.90 and 0.88); k_quant came closer than rtn (0.90 against
    1.26); an int8 head cost nothing that could be measured at a quarter of the size, an int4 head 0.22.

    Raises CheckpointUnsupported before anything is written, ExportFailed afterwards; what is in `output` is then void.
    """
    folder = locate(checkpoint)
    config = check_checkpoint(folder)
    options: dict[str, object] = {
        "hf_token": "false",
        "hf_remote": "false",
        "prune_lm_head": prune_lm_head,
        # A copy of tied embeddings for the lookup: the head's own, transposed, would be made again at every load.
        "shared_embeddings": "false",
        # Bounded caches break past the window in this release where every layer slides, and lanes need equal layers.
        "windowed_kv_cache": "false",
    }
    if precision == "int4":
        check_quantizable(folder, group_size, algorithm)
        options |= {"algo_config": algorithm, "block_size": group_size, "accuracy_level": accuracy_level}
        options |= (
            {"nodes_to_exclude": HEAD_NODE} if head == "float32" else {"matmul_mixed_precision": "last_matmul:int8"}
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loraplex-export-") as scratch:
        path = log or Path(scratch) / "export.log"
        with path.open("w", encoding="utf-8") as stream:
            try:
                with noise_to(stream):
                    _run_builder(folder, output, precision, options, Path(scratch) / "cache")
            except Exception as error:
                failure = ExportFailed(
                    f"the model builder failed on {folder}: {type(error).__name__}: {first_line(error)}"
                )
                failure.add_note("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[-20:]))
                raise failure from error
    graph = _check_files(output)
    if precision == "int4":
        _check_quantized(graph, group_size, accuracy_level, head)
    if config.window is not None:
        limit_context(output / "genai_config.json", config.context_length)
    run_once(output)
    return Export(
        architecture=config.architecture,
        dtype="float32",
        quantization=Quantization("none", 32) if precision == "float32" else Quantization(algorithm, 4, group_size),
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        sampling=_sampling(folder),
    )


def run_once(folder: Path, adapters: Mapping[str, Path] | None = None) -> None:
    """Load an exported folder and run one token through it, then through each adapter (file by name).

    Raises ExportFailed where anything of that fails or the logits are not finite.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy as np
    import onnxruntime_genai as og

    name = "the base"
    try:
        model = og.Model(str(folder))
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


def _run_builder(folder: Path, output: Path, precision: Precision, options: Mapping[str, object], cache: Path) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    positional = (None, str(folder), str(output), {"float32": "fp32", "int4": "int4"}[precision], "cpu", str(cache))
    create_model(*positional, **parse_extra_options(*positional, [f"{key}={value}" for key, value in options.items()]))


@contextlib.contextmanager
def noise_to(stream: TextIO) -> Iterator[None]:
    """Turn prints, progress bars, warnings and log records of this process to a stream.

    The quantizer of onnxruntime calls logging.basicConfig when it is imported; having a handler for the time of the
    call keeps it from leaving one behind.
    """
    handler = logging.StreamHandler(stream)
    loggers = (logging.getLogger(), logging.getLogger("transformers"))
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
        try:
            for logger in loggers:
                logger.handlers[:] = [handler]
            yield
        finally:
            for logger, handlers, level in before:
                logger.handlers[:] = handlers
                logger.setLevel(level)


def _check_files(output: Path) -> onnx.GraphProto:
    for name in (MODEL, DATA, "genai_config.json", "tokenizer.json", "tokenizer_config.json"):
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


def _check_quantized(graph: onnx.GraphProto, group_size: int, accuracy_level: int, head: Head) -> None:
    """Compare every linear layer with what was asked for, since unknown options are ignored without a word."""
    body = {"bits": 4, "block_size": group_size, "accuracy_level": accuracy_level}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        is_head = node.name.startswith(HEAD_NODE)
        if node.op_type == "MatMul" and node.input[1] in constants and not (is_head and head == "float32"):
            raise ExportFailed(f"{node.name} was not quantized")
        if node.op_type != "MatMulNBits":
            continue
        if is_head and head == "float32":
            raise ExportFailed(f"{node.name} was quantized, although it was to stay float32")
        found = {attribute.name: attribute.i for attribute in node.attribute}
        for option, wanted in (body | ({"bits": 8} if is_head else {})).items():
            # The operator's defaults: bits 4, accuracy_level 0, no default for block_size.
            if (value := found.get(option, {"bits": 4}.get(option, 0))) != wanted:
                raise ExportFailed(f"{node.name} has {option} {value}, {wanted} was asked for")


def limit_context(path: Path, length: int) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["context_length"] = config["search"]["max_length"] = length
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")


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
