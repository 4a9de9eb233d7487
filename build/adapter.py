"""PEFT adapter -> `.onnx_adapter` and adapter.json, for one base.

The graph knows nothing but A and B, so the LoRA scale is folded into B and Phi-3's packed modules are split.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loraplex.build.lora_inputs import PACKED
from loraplex.build.peft_folder import MODULE, Weights, read_config, read_modules
from loraplex.server.bundle import ADAPTER_MANIFEST, AdapterManifest, Base, Dtype, Sampling, sha256, write_manifest
from loraplex.server.errors import AdapterInvalid

_BLOCKS = {"self_attn": "attn", "mlp": "mlp"}
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
    config = read_config(peft, name)
    if chat_template is not None and not chat_template.is_file():
        raise AdapterInvalid(f"adapter {name}: there is no chat template {chat_template}")
    tensors: dict[str, Weights] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, module in sorted(read_modules(peft, config, name).items(), key=lambda item: _natural(item[0])):
        for projection, b in _unpack(path, module.b, base, name).items():
            rows, columns = base.projections[projection]
            if module.a.shape[0] != rows or b.shape[1] != columns:
                raise AdapterInvalid(
                    f"adapter {name}: {path} maps {module.a.shape[0]} to {b.shape[1]} features, "
                    f"{projection} of {base.name} maps {rows} to {columns}"
                )
            if projection in ranks:
                raise AdapterInvalid(f"adapter {name}: {projection} is adapted twice, packed and on its own")
            ranks[projection], alphas[projection] = module.rank, module.alpha
            for side, values in (("A", module.a), ("B", b)):
                # Put this way round, it also catches the NaN of an alpha that is none.
                if not np.abs(values).max(initial=0) <= _LARGEST[base.dtype]:
                    raise AdapterInvalid(f"adapter {name}: {path}.lora_{side} overflows {base.dtype}")
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
        ranks=ranks,
        alphas=alphas,
        source=source,
        description=description,
        chat_template=chat_template.name if chat_template is not None else None,
        sampling=sampling or Sampling(),
    )
    write_manifest(output / ADAPTER_MANIFEST, manifest)
    return manifest


def _unpack(path: str, b: Weights, base: Base, name: str) -> dict[str, Weights]:
    """B by projection: that of Phi-3's packed modules is split by columns, A being common to the parts."""
    layer, block, module = MODULE.fullmatch(path).groups()  # type: ignore[union-attr]
    parts = PACKED.get(module, (module,))
    projections = [f"{layer}.{_BLOCKS[block]}.{part}" for part in parts]
    for projection in projections:
        if projection not in base.projections:
            raise AdapterInvalid(f"adapter {name}: {base.name} has no projection for {path}")
    if len(parts) == 1:
        return {projections[0]: b}
    ends = np.cumsum([base.projections[projection][1] for projection in projections])
    if b.shape[1] != ends[-1]:
        raise AdapterInvalid(
            f"adapter {name}: {path} has {b.shape[1]} output features, "
            f"{' + '.join(parts)} of {base.name} have {ends[-1]}"
        )
    return dict(zip(projections, np.split(b, ends[:-1], axis=1), strict=True))


def _write(tensors: Mapping[str, Weights], file: Path, dtype: Dtype) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import torch
    from onnx import TensorProto
    from onnxruntime import AdapterFormat, OrtValue

    def encode(array: Weights) -> OrtValue:
        if dtype == "bfloat16":
            bits = torch.from_numpy(array.copy()).bfloat16().view(torch.uint16).numpy()
            return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, dtype))

    # The format borrows memory of arrays that only these values own: they have to outlive the export.
    values = {key: encode(array) for key, array in tensors.items()}
    adapter = AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(file))


def _natural(path: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in path.split(".")]
