"""Whether a recipe's quantization and adapters go with its base. Reads no weights, only their headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraplex.build.checkpoint import read_tensors
from loraplex.build.document import Problems
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.peft_shapes import check_peft
from loraplex.build.recipe import Recipe, resolve
from loraplex.build.support import check_quantizable

AWQ_TYPES = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""model_type of the families that AutoAWQ 0.2.9 knows and bundles can be made of."""
_AWQ_OUTPUTS = 8
"""Output features that AWQ's format packs into one number."""


def check_quantization(
    recipe: Recipe, base: Path, config: Mapping[str, Any], awq_group_size: int | None, problems: Problems
) -> None:
    """`awq_group_size` is that of a base which is quantized by AWQ already; None of any other."""
    algorithm, size, path = recipe.quantization.algorithm, recipe.group_size, ("quantization", "group_size")
    if awq_group_size is not None:
        if recipe.quantization.group_size not in (None, awq_group_size):
            problems.add(
                path, f"is {size}, but {base} is quantized in groups of {awq_group_size} already: leave it out"
            )
        if algorithm != "awq":
            problems.add(("quantization", "algorithm"), f"is {algorithm}, but {base} is quantized by awq already")
        if any(adapter.trained and adapter.method == "qlora" for adapter in recipe.adapters.values()) or recipe.merge:
            problems.add(("base",), "is quantized already: qlora and merge take the checkpoint that it was made from")
        return
    if algorithm in ("rtn", "k_quant"):
        try:
            check_quantizable(base, size, algorithm)
        except CheckpointUnsupported as error:
            problems.add(path, error.message)
    elif algorithm == "awq":
        if config.get("model_type") not in AWQ_TYPES:
            problems.add(
                ("quantization", "algorithm"), f"AutoAWQ does not know {config.get('model_type')}: take k_quant"
            )
            return
        for name, tensor in read_tensors(base).items():
            if not name.endswith("_proj.weight"):
                continue
            outputs, inputs = tensor.shape
            if inputs % size:
                problems.add(path, f"{name} has {inputs} input features, which groups of {size} do not divide")
                return
            if outputs % _AWQ_OUTPUTS:
                problems.add(
                    ("quantization", "algorithm"),
                    f"awq packs output features by {_AWQ_OUTPUTS} and {name} has {outputs}: take k_quant",
                )
                return


def check_adapters(
    recipe: Recipe, folder: Path, config: Mapping[str, Any], modules: tuple[str, ...], problems: Problems
) -> None:
    for name, adapter in recipe.adapters.items():
        path = ("adapters", name)
        if adapter.peft is not None:
            peft = resolve(adapter.peft, folder)
            if not peft.is_dir():
                problems.add((*path, "peft"), f"there is no folder {peft}")
                continue
            for reason in check_peft(peft, config):
                problems.add((*path, "peft"), reason if reason.startswith(str(peft)) else f"{peft}: {reason}")
        elif adapter.target_modules != "all-linear":
            if not adapter.target_modules:
                problems.add((*path, "target_modules"), "names no module")
            for module in adapter.target_modules:
                if module not in modules:
                    problems.add((*path, "target_modules"), f"there is no {module}, there are {', '.join(modules)}")
