"""What an adapter is, without converting or running it: a PEFT folder, an adapter of a bundle, or an adapter file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from msgspec import Struct

from loraplex.build.checkpoint import read_header
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.olive_adapter import check_file, open_adapter_file
from loraplex.build.peft_folder import (
    CONFIG,
    DTYPES,
    TENSOR,
    WEIGHTS,
    PeftConfig,
    check_config,
    parse_fields,
    pattern_value,
)
from loraplex.build.peft_shapes import check_weights, target_of_bundle
from loraplex.server.bundle import ADAPTER_MANIFEST, Bundle, read_adapter_manifest, sha256
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.errors import AdapterInvalid, LoraplexError

FOLDED = "adapter of a bundle"
"""The kind whose B is known to hold the scale."""


class ModuleReport(Struct, frozen=True):
    """One adapted linear layer. `alpha` and `scale` are None where nobody wrote them down."""

    rank: int
    in_features: int
    out_features: int
    alpha: float | None = None
    scale: float | None = None
    """What A times B is multiplied by; in files of bundles it is folded into B."""


class Report(Struct, frozen=True):
    """What is known of one adapter."""

    path: str
    kind: str
    dtype: str
    bytes: int
    """Of the weight file."""
    sha256: str
    """Of the weight file."""
    modules: dict[str, ModuleReport]
    """By module of the PyTorch model, or by projection."""
    base: str | None = None
    """The base as the adapter names it: a fingerprint, or what PEFT wrote."""
    description: str = ""
    problems: tuple[str, ...] = ()
    """Why it cannot be served, whatever the base."""
    bundle: str | None = None
    """The bundle it was compared with."""
    fits: bool | None = None
    reasons: tuple[str, ...] = ()
    """Why it does not fit that bundle."""

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(path.rpartition(".")[2] for path in self.modules))


def inspect(adapter: Path, bundle: Bundle | None = None) -> Report:
    """Report on an adapter, compared with a bundle's base if one is given. Raises AdapterInvalid if it is none."""
    if adapter.is_file():
        return _of_file(adapter, bundle)
    if (adapter / ADAPTER_MANIFEST).is_file():
        return _of_bundle_folder(adapter, bundle)
    if (adapter / CONFIG).is_file():
        return _of_peft(adapter, bundle)
    what = "has neither adapter.json nor adapter_config.json" if adapter.is_dir() else "does not exist"
    raise AdapterInvalid(f"{adapter} {what}: give a PEFT folder, an adapter's folder or an .onnx_adapter file")


def _of_peft(folder: Path, bundle: Bundle | None) -> Report:
    config, problems = check_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterInvalid("; ".join(problems))
    try:
        stored = read_header(path)
    except CheckpointUnsupported as error:
        raise AdapterInvalid(error.message) from None
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in stored.items():
        if (match := TENSOR.fullmatch(key)) and len(tensor.shape) == 2:
            shapes.setdefault(match[1], {})[match[2]] = tensor.shape
    modules = {
        module: _peft_module(module, sides["A"], sides["B"], config)
        for module, sides in shapes.items()
        if len(sides) == 2
    }
    reasons = check_weights(folder, config, target_of_bundle(bundle.manifest.base)) if bundle else []
    return Report(
        path=str(folder),
        kind="PEFT adapter",
        dtype=_one(_name(tensor.dtype) for tensor in stored.values()),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        modules=dict(sorted(modules.items(), key=lambda item: _natural(item[0]))),
        base=parse_fields(folder / CONFIG).get("base_model_name_or_path"),
        problems=tuple(problems),
        bundle=str(bundle.folder) if bundle else None,
        fits=not problems and not reasons if bundle else None,
        reasons=tuple(reasons),
    )


def _peft_module(path: str, a: tuple[int, ...], b: tuple[int, ...], config: PeftConfig | None) -> ModuleReport:
    """A is [rank, in] and B [out, rank]."""
    if config is None:
        return ModuleReport(a[0], a[1], b[0])
    alpha = float(pattern_value(config.alpha_pattern, path, config.lora_alpha))
    return ModuleReport(a[0], a[1], b[0], alpha, alpha / (math.sqrt(a[0]) if config.use_rslora else a[0]))


def _of_bundle_folder(folder: Path, bundle: Bundle | None) -> Report:
    manifest = read_adapter_manifest(folder)
    file = folder / manifest.file
    opened = open_adapter_file(file, folder.name)
    modules = {
        projection: ModuleReport(module.rank, module.a.shape()[0], module.b.shape()[1], manifest.alphas.get(projection))
        for projection, module in opened.modules.items()
    }
    reasons: tuple[str, ...] = ()
    if bundle:
        try:
            check_adapter(folder, bundle.manifest.base)
        except LoraplexError as error:
            reasons = (error.message,)
    return Report(
        path=str(folder),
        kind=FOLDED,
        dtype=manifest.dtype,
        bytes=file.stat().st_size,
        sha256=sha256(file),
        modules=dict(sorted(modules.items(), key=lambda item: _natural(item[0]))),
        base=manifest.base_fingerprint,
        description=manifest.description,
        bundle=str(bundle.folder) if bundle else None,
        fits=not reasons if bundle else None,
        reasons=reasons,
    )


def _of_file(file: Path, bundle: Bundle | None) -> Report:
    opened = open_adapter_file(file, file.stem)
    modules = {
        projection: ModuleReport(module.rank, module.a.shape()[0], module.b.shape()[1])
        for projection, module in opened.modules.items()
    }
    reasons = check_file(opened, target_of_bundle(bundle.manifest.base)) if bundle else []
    return Report(
        path=str(file),
        kind="adapter file with PEFT's names" if opened.peft_names else "adapter file with the model builder's names",
        dtype=_one(module.dtype for module in opened.modules.values()),
        bytes=file.stat().st_size,
        sha256=sha256(file),
        modules=dict(sorted(modules.items(), key=lambda item: _natural(item[0]))),
        bundle=str(bundle.folder) if bundle else None,
        fits=not reasons if bundle else None,
        reasons=tuple(reasons),
    )


def _name(dtype: str) -> str:
    return np.dtype(DTYPES[dtype]).name if dtype in DTYPES else dtype


def _one(dtypes: Iterable[str]) -> str:
    return ", ".join(sorted(set(dtypes)))


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
