"""The model builder of onnxruntime-genai 0.18, called so that it stays quiet and its failure is one line.

It prints where others raise and ignores options that it does not know without a word: callers have to look into what
it wrote.
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
from pathlib import Path
from typing import Literal, TextIO

from loraplex.build.errors import ExportFailed, first_line

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "float16", "int4"]

MODEL = "model.onnx"
DATA = "model.onnx.data"
CONFIG = "genai_config.json"
HEAD_NODE = "/lm_head/MatMul"

COMMON_OPTIONS: Mapping[str, object] = {
    "hf_token": "false",
    "hf_remote": "false",
    # A copy of tied embeddings for the lookup: the head's own, transposed, would be made again at every load.
    "shared_embeddings": "false",
    # Bounded caches break past the window in this release where every layer slides, lanes need equal layers, and
    # routing attention has to see the first token.
    "windowed_kv_cache": "false",
}
"""What every export of ours asks for."""


def run_builder(
    checkpoint: Path,
    output: Path,
    precision: Precision,
    device: Device,
    options: Mapping[str, object],
    log: Path | None = None,
) -> None:
    """Let the builder write model.onnx, model.onnx.data, genai_config.json and the tokenizer into `output`.

    Activations are float32 on the CPU and float16 on CUDA; no GPU is needed for either. `options` are the builder's
    own. What it and its libraries print goes to `log`; standard output and error and the logging handlers of the whole
    process are turned there meanwhile. Raises ExportFailed, with the end of the log as a note.
    """
    output.mkdir(parents=True, exist_ok=True)
    # Beside the output, where there is room for it, and where what a killed build leaves is cleared away.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as scratch:
        path = log or Path(scratch) / "export.log"
        with path.open("a", encoding="utf-8") as stream:
            try:
                with noise_to(stream):
                    _call(checkpoint, output, precision, device, options, Path(scratch) / "cache")
            except Exception as error:
                failure = ExportFailed(
                    f"the model builder failed on {checkpoint}: {type(error).__name__}: {first_line(error)}"
                )
                failure.add_note("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[-20:]))
                raise failure from error


def _call(
    checkpoint: Path, output: Path, precision: Precision, device: Device, options: Mapping[str, object], cache: Path
) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    name = {"float32": "fp32", "float16": "fp16", "int4": "int4"}[precision]
    positional = (None, str(checkpoint), str(output), name, device, str(cache))
    extra = [f"{key}={value}" for key, value in {**COMMON_OPTIONS, **options}.items()]
    create_model(*positional, **parse_extra_options(*positional, extra))


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


def limit_context(config: Path, length: int) -> None:
    """Write another context length, in tokens, into a genai_config.json."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["model"]["context_length"] = fields["search"]["max_length"] = length
    config.write_text(json.dumps(fields, indent=4), encoding="utf-8")
