"""The weights of a bundle, compared one by one with the checkpoint and the PEFT adapters that they were made from.

Unlike logits this is exact in any precision of activations, so a wrong zero point or adapter scale shows in float16 as
well, and on a machine without a GPU for graphs that run on GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loraplex.build.findings import WeightCheck
from loraplex.build.graph_weights import LinearWeight, iterate_linears
from loraplex.build.lora_inputs import BLOCKS, PACKED
from loraplex.build.twin import HEAD, Checkpoint
from loraplex.server.bundle import Dtype, Quantization

_ROUNDING = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest difference that a cast makes, relative to the largest value."""
_STEPS = "steps of the quantization, mean of a group"
_KEPT = 0.01
"""Steps by which weights may differ that were quantized before: their scales may be cast."""
_ROUNDED = 0.6
"""Steps by which a group may be off on average where the build itself rounds weights. Rounding to nearest and k_quant
stay below 0.26 for groups of 32; a zero point that is wrong by one adds one."""
_BLOCK_NAMES = {"self_attn": "attn", "mlp": "mlp"}


def check_weights(variant: Path, checkpoint: Checkpoint, quantization: Quantization, dtype: Dtype) -> list[WeightCheck]:
    """Compare the linear layers and the LM head of an exported folder with its checkpoint. Raises ExportFailed.

    One that is not found in the graph counts as an infinite difference.
    """
    found: dict[str, list[tuple[float, str, int]]] = {}
    missing = checkpoint.linears()
    for linear in iterate_linears(variant):
        missing -= set(linear.modules)
        reference = torch.cat([checkpoint.linear(module) for module in linear.modules]).numpy()
        if reference.shape != linear.weight.shape:
            found.setdefault("floats", []).append((float("inf"), linear.node, reference.size))
            continue
        if linear.step is None:
            kind, difference = "floats", _relative(linear.weight, reference)
        else:
            kind, difference = "head" if HEAD in linear.modules else "linears", _group_shift(linear, reference)
        found.setdefault(kind, []).append((difference, linear.node, reference.size))
    if missing:
        found.setdefault("floats" if quantization.method == "none" else "linears", []).extend(
            (float("inf"), module, 0) for module in sorted(missing)
        )
    kept = quantization.method == "awq"
    limits = {
        "floats": (_ROUNDING[dtype], "of the largest weight"),
        "linears": (_KEPT if kept else _ROUNDED, _STEPS),
        "head": (_ROUNDED, _STEPS),
    }
    names = {"floats": "float layers", "linears": "int4 layers", "head": "LM head"}
    return [
        _summarize(f"base/{variant.name}, {names[kind]}", entries, *limits[kind]) for kind, entries in found.items()
    ]


def check_adapter_weights(name: str, file: Path, model: Any, dtype: Dtype) -> WeightCheck:
    """Compare A @ B of an adapter file with what PEFT adds to each weight under the adapter `name` of `model`.

    A layer that only one of the two knows counts as an infinite difference.
    """
    from onnxruntime import AdapterFormat

    adapter = AdapterFormat.read_adapter(str(file))
    # Its values lie in memory that ends with it.
    stored = {key: value.numpy().copy() for key, value in adapter.get_parameters().items()}
    entries = []
    for path, delta in _peft_deltas(model, name):
        written = _delta(stored, path, delta.shape)
        entries.append((float("inf") if written is None else _relative(written, delta), path, delta.size))
    entries += [(float("inf"), left, stored[left].size) for left in stored]
    return _summarize(name, entries, 5 * _ROUNDING[dtype], "of the largest value that PEFT adds in the layer")


def _summarize(part: str, entries: list[tuple[float, str, int]], limit: float, unit: str) -> WeightCheck:
    difference, worst, _ = max(entries, default=(float("inf"), "nothing to compare", 0))
    return WeightCheck(part, sum(size for *_, size in entries), difference, limit, unit, worst)


def _group_shift(linear: LinearWeight, reference: Any) -> float:
    """The largest mean difference of a group of weights, in steps of its quantization."""
    assert linear.step is not None
    rows, columns = reference.shape
    difference = np.zeros((rows, linear.step.shape[1] * linear.group_size), np.float32)
    difference[:, :columns] = linear.weight - reference
    means = difference.reshape(rows, -1, linear.group_size).mean(-1)
    # A group of equal weights can have a step of zero; nothing but zero is right then.
    shifts = np.abs(means) / np.where(linear.step == 0, np.finfo(np.float32).tiny, np.abs(linear.step))
    return _finite(shifts.max())


def _relative(found: Any, reference: Any) -> float:
    largest = np.abs(reference).max()
    return _finite(np.abs(found - reference).max() / (largest or 1))


def _finite(value: Any) -> float:
    """NaN would pass a comparison the wrong way round."""
    return float(value) if np.isfinite(value) else float("inf")


def _peft_deltas(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What PEFT adds to each weight [out_features, in_features], by the module's name in the checkpoint."""
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            delta = module.get_delta_weight(name).detach().float().cpu().numpy()
            yield path[path.index("model.layers.") :], delta


def _delta(stored: dict[str, Any], path: str, shape: tuple[int, ...]) -> Any | None:
    """A @ B of a module, [out_features, in_features], its tensors taken out of `stored`; None where one is missing."""
    _, _, layer, block, module = path.split(".")
    block = _BLOCK_NAMES[block]
    parts = [part for part in PACKED.get(module, (module,)) if part in BLOCKS[block]]
    deltas = []
    for part in parts:
        a, b = (stored.pop(f"model.layers.{layer}.{block}.{part}.lora_{side}.weight", None) for side in "AB")
        if a is None or b is None:
            return None
        deltas.append((a.astype(np.float32) @ b.astype(np.float32)).T)
    joined = np.concatenate(deltas)
    return joined if joined.shape == shape else None
