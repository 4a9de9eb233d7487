"""Olive's `.onnx_adapter` files -> A and B by projection.

Three writers of Olive (0.13.0), which agree on A [in, rank] and B [rank, out] and name them differently:

    olive convert-adapters       model.layers.0.self_attn.q_proj.lora_A.weight              PEFT's names
    ExtractAdapters              model.layers.0.attn.q_proj.lora_A.MatMul.weight            the model builder's names
    olive extract-adapters       base_model.model.model.layers.0.attn.q_proj.lora_A.MatMul.weight

Nothing in a file tells whether B holds the scale, alpha over rank. All three fold it in, but convert-adapters
(`olive/cli/convert_adapters.py`) takes one scale for all modules, whatever rank_pattern and alpha_pattern say. So
whoever brings a file has to say what B holds, and what convert-adapters may have got wrong is refused.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

from loraplex.build.lora_inputs import PACKED
from loraplex.build.peft_folder import Module, PeftConfig, Weights, explain_foreign, pattern_value, scale_module
from loraplex.build.peft_shapes import Target
from loraplex.server.errors import AdapterInvalid

if TYPE_CHECKING:
    from onnxruntime import AdapterFormat, OrtValue

Scale = Literal["folded", "unfolded"]

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(self_attn|attn|mlp)\.(\w+)\.lora_([AB])(\.MatMul)?\.weight"
)
_QUANTIZED = re.compile(r".+\.(quant\.(weight|scale|zero_point)|weight_(Q\d+|scales|zero_points))")
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


@dataclass(frozen=True)
class FileModule:
    """A [in, rank] and B [rank, out] of one module as they lie in a file."""

    a: OrtValue
    b: OrtValue
    dtype: str

    @property
    def rank(self) -> int:
        return int(self.a.shape()[1])


@dataclass(frozen=True)
class AdapterFile:
    """An open adapter file: its modules by `LAYER.BLOCK.MODULE`, where the module may be a packed one."""

    modules: dict[str, FileModule]
    peft_names: bool
    """Whether convert-adapters may have written it, which knows no patterns."""
    owner: AdapterFormat
    """Owns the memory of the modules' values."""


def open_adapter_file(file: Path, name: str) -> AdapterFile:
    """Read an adapter file with Olive's names or our own. Raises AdapterInvalid where it holds anything else."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime import AdapterFormat

    if not file.is_file():
        raise AdapterInvalid(f"adapter {name}: there is no file {file}")
    try:
        owner = AdapterFormat.read_adapter(str(file))
        values = owner.get_parameters()
    # A file that is wrong in its tables raises RuntimeError, one with names that are no UTF-8 UnicodeDecodeError.
    except (RuntimeError, ValueError):
        raise AdapterInvalid(f"adapter {name}: {file} is not an adapter file of onnxruntime") from None
    sides: dict[str, dict[str, OrtValue]] = {}
    peft_names = True
    for key, value in sorted(values.items()):
        if (match := _TENSOR.fullmatch(key)) is None:
            raise AdapterInvalid(f"adapter {name}: {_explain(key)}")
        layer, block, module, side, matmul = match.groups()
        if value.data_type() not in _DTYPES or len(value.shape()) != 2:
            raise AdapterInvalid(f"adapter {name}: {key} is {value.data_type()} of the shape {value.shape()}")
        peft_names = peft_names and matmul is None and block != "attn"
        sides.setdefault(f"{layer}.{block.removeprefix('self_')}.{module}", {})[side] = value
    if not sides:
        raise AdapterInvalid(f"adapter {name}: {file} holds no LoRA weights")
    modules = {}
    for projection, pair in sorted(sides.items(), key=lambda item: (int(item[0].partition(".")[0]), item[0])):
        if missing := {"A", "B"} - pair.keys():
            raise AdapterInvalid(f"adapter {name}: {projection} has no lora_{missing.pop()}")
        dtypes = {_DTYPES[value.data_type()] for value in pair.values()}
        if len(dtypes) > 1 or pair["A"].shape()[1] != pair["B"].shape()[0]:
            raise AdapterInvalid(
                f"adapter {name}: A {pair['A'].shape()} and B {pair['B'].shape()} of {projection} do not go together"
            )
        modules[projection] = FileModule(pair["A"], pair["B"], dtypes.pop())
    return AdapterFile(modules, peft_names, owner)


def check_file(adapter: AdapterFile, target: Target) -> list[str]:
    """Every reason why the modules of a file do not fit a base, by their names and shapes."""
    problems = []
    for projection, module in adapter.modules.items():
        parts = _parts(projection)
        if len(parts) > 1 and projection.rpartition(".")[2] not in target.modules:
            problems.append(f"it adapts {projection}, {target.architecture} has {', '.join(target.modules)}")
            continue
        if any(part not in target.projections for part in parts):
            problems.append(f"{target.name} has no projection {projection}")
            continue
        found = module.a.shape()[0], module.b.shape()[1]
        wanted = target.projections[parts[0]][0], sum(target.projections[part][1] for part in parts)
        if found != wanted:
            problems.append(
                f"{projection} maps {found[0]} to {found[1]} features, that of {target.name} {wanted[0]} to {wanted[1]}"
            )
    return problems


def read_olive(
    file: Path, target: Target, *, name: str, scale: Scale, config: PeftConfig | None = None
) -> dict[str, Module]:
    """Modules of an adapter file by projection, in the order of the base.

    `scale` says whether B is `folded`, multiplied by alpha over rank already, or as it was trained. `config` is the
    adapter_config.json of the training; without it a folded file's alphas stay unknown, and an unfolded one cannot be
    read. Raises AdapterInvalid.
    """
    adapter = open_adapter_file(file, name)
    if problems := check_file(adapter, target):
        raise AdapterInvalid(f"adapter {name}: {problems[0]}")
    if scale == "unfolded" and config is None:
        raise AdapterInvalid(f"adapter {name}: its adapter_config.json is needed to scale B, give --config")
    ranks = {module.rank for module in adapter.modules.values()}
    patterns = config is not None and (config.rank_pattern or config.alpha_pattern)
    if scale == "folded" and adapter.peft_names and (len(ranks) > 1 or patterns):
        why = f"its modules have ranks {sorted(ranks)}" if len(ranks) > 1 else "its config has patterns"
        raise AdapterInvalid(
            f"adapter {name}: {why}, and olive convert-adapters scales all modules alike: convert its PEFT folder"
        )
    found: dict[str, Module] = {}
    for projection, stored in adapter.modules.items():
        parts = _parts(projection)
        path = target.path(parts[0])
        a, b = (_values(value, f"{projection}.lora_{side}", name) for side, value in _sides(stored))
        module = Module(stored.rank, None, a, b)
        if config is not None:
            if (rank := int(pattern_value(config.rank_pattern, path, config.r))) != stored.rank:
                raise AdapterInvalid(f"adapter {name}: {projection} has rank {stored.rank}, its config says {rank}")
            trained = scale_module(path, a, b, config)
            module = trained if scale == "unfolded" else Module(stored.rank, trained.alpha, a, b)
        ends = np.cumsum([target.projections[part][1] for part in parts])
        for part, columns in zip(parts, np.split(module.b, ends[:-1], axis=1), strict=True):
            if part in found:
                raise AdapterInvalid(f"adapter {name}: {part} is adapted twice, packed and on its own")
            found[part] = Module(module.rank, module.alpha, module.a, columns)
    return {projection: found[projection] for projection in target.projections if projection in found}


def _parts(projection: str) -> list[str]:
    """The projections of a module, several where it is packed."""
    layer, block, module = projection.split(".")
    return [f"{layer}.{block}.{part}" for part in PACKED.get(module, (module,))]


def _sides(module: FileModule) -> tuple[tuple[str, OrtValue], tuple[str, OrtValue]]:
    return ("A", module.a), ("B", module.b)


def _values(value: OrtValue, tensor: str, name: str) -> Weights:
    array = to_float32(value)
    if not np.isfinite(array).all():
        raise AdapterInvalid(f"adapter {name}: {tensor} has values that are not finite")
    return array


def to_float32(value: OrtValue) -> Weights:
    """A copy of a tensor in float32, which does not need the file any more."""
    if _DTYPES[value.data_type()] != "bfloat16":
        return np.array(value.numpy(), np.float32)
    # numpy has no bfloat16, and onnxruntime gives none to it.
    shape = value.shape()
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr()))
    array: Weights = bits.view(ml_dtypes.bfloat16).astype(np.float32).reshape(shape)
    return array


def _explain(key: str) -> str:
    """Why a tensor of a file cannot be taken."""
    if _QUANTIZED.fullmatch(key):
        return f"its weights are quantized ({key}): make it again without --quantize_int4"
    reason = explain_foreign(key) if ".lora_" in key else None
    if reason and "no linear layer" not in reason:
        return f"{reason} ({key})"
    return f"{key} is no name that Olive gives to the weights of a decoder's linear layer"
