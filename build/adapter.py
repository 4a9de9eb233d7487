"""PEFT adapter -> `.onnx_adapter` and adapter.json, for one base.

The graph knows nothing but A and B, so the LoRA scale is folded into B and Phi-3's packed modules are split.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from loraplex.build.errors import BuildFailed, first_line
from loraplex.build.peft_folder import Module, Weights, read_config, read_modules
from loraplex.build.peft_shapes import Target, check_weights, target_of_bundle
from loraplex.server.bundle import ADAPTER_MANIFEST, AdapterManifest, Base, Dtype, Sampling, sha256, write_manifest
from loraplex.server.errors import AdapterInvalid

_LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}
"""Largest finite value of a dtype."""


def convert(
    peft: Path,
    base: Base,
    output: Path,
    *,
    name: str,
    description: str = "",
    source: str = "",
    chat_template: Path | None = None,
    sampling: Sampling | None = None,
) -> AdapterManifest:
    """Write NAME.onnx_adapter and adapter.json into `output`, in the base's dtype; return what adapter.json says.

    `peft` is a PEFT folder: adapter_config.json and adapter_model.safetensors. `chat_template`, a Jinja file, is copied
    beside them. Raises AdapterInvalid with one line that names the adapter and the reason, before anything is written.
    """
    config, target = read_config(peft, name), target_of_bundle(base)
    if problems := check_weights(peft, config, target):
        raise AdapterInvalid(f"adapter {name}: {problems[0]}")
    modules = dict(_split(read_modules(peft, config, name), target))
    return write_adapter(
        modules,
        base,
        output,
        name=name,
        description=description,
        source=source,
        chat_template=chat_template,
        sampling=sampling,
    )


def write_adapter(
    modules: Mapping[str, Module],
    base: Base,
    output: Path,
    *,
    name: str,
    description: str = "",
    source: str = "",
    chat_template: Path | None = None,
    sampling: Sampling | None = None,
) -> AdapterManifest:
    """Write an adapter whose modules, by projection, are known to fit the base. Otherwise like `convert`.

    Values too large for the base's dtype are refused. Raises OSError and BuildFailed where the file cannot be written.
    """
    if chat_template is not None and not chat_template.is_file():
        raise AdapterInvalid(f"adapter {name}: there is no chat template {chat_template}")
    tensors: dict[str, Weights] = {}
    for projection, module in modules.items():
        for side, values in (("A", module.a), ("B", module.b)):
            # Put this way round, it also catches the NaN of an alpha that is none.
            if not np.abs(values).max(initial=0) <= _LARGEST[base.dtype]:
                raise AdapterInvalid(f"adapter {name}: {projection}.lora_{side} overflows {base.dtype}")
            tensors[f"model.layers.{projection}.lora_{side}.weight"] = values
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{name}.onnx_adapter"
    _write(tensors, file, base.dtype)
    if chat_template is not None:
        (output / chat_template.name).write_bytes(chat_template.read_bytes())
    manifest = AdapterManifest(
        format=1,
        file=file.name,
        sha256=sha256(file),
        base_fingerprint=base.fingerprint,
        dtype=base.dtype,
        ranks={projection: module.rank for projection, module in modules.items()},
        alphas={projection: module.alpha for projection, module in modules.items() if module.alpha is not None},
        source=source,
        description=description,
        chat_template=chat_template.name if chat_template is not None else None,
        sampling=sampling or Sampling(),
    )
    write_manifest(output / ADAPTER_MANIFEST, manifest)
    return manifest


def _split(modules: Mapping[str, Module], target: Target) -> Iterator[tuple[str, Module]]:
    """Modules by projection, in the order of the base: B of a packed one is split by columns, A is common."""
    found: dict[str, Module] = {}
    for path, module in modules.items():
        parts = target.parts(path)
        ends = np.cumsum([width for _, width in parts.values()])
        for projection, b in zip(parts, np.split(module.b, ends[:-1], axis=1), strict=True):
            found[projection] = Module(module.rank, module.alpha, module.a, b)
    return ((projection, found[projection]) for projection in target.projections if projection in found)


def _write(tensors: Mapping[str, Weights], file: Path, dtype: Dtype) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnx import TensorProto
    from onnxruntime import AdapterFormat, OrtValue

    def encode(array: Weights) -> OrtValue:
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(array, ml_dtypes.bfloat16).view(np.uint16)
            return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, dtype))

    # The format borrows memory of arrays that only these values own: they have to outlive the export.
    values = {key: encode(array) for key, array in tensors.items()}
    adapter = AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    try:
        adapter.export_adapter(str(file))
    except RuntimeError as error:
        # It does not say why. As a rule the disk is full.
        if shutil.disk_usage(file.parent).free < sum(array.nbytes for array in tensors.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise BuildFailed(f"{file} cannot be written: {first_line(error)}") from error
