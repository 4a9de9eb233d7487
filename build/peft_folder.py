"""Reading a PEFT adapter: what its config says, and A and B of every module with the LoRA scale folded in.

What A and B alone cannot express is refused by name, and so is every option of the config that is set and not known
here: an adapter of a newer PEFT must not be turned into something that only looks right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from loraplex.server.bundle import Name
from loraplex.server.errors import AdapterInvalid

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_HARMLESS = frozenset(
    {
        # Where the adapter came from, what was trained and how: no influence on what the trained weights compute.
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "target_modules", "velora_config"),
        # Read here.
        *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "task_type"),
        "use_rslora",
    }
)
_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA switches on within a prompt",
    "layer_replication": "layers were repeated, so the base is another model",
    "lora_bias": "B has a bias of its own (lora_bias)",
    "modules_to_save": "whole modules were trained (modules_to_save)",
    "trainable_token_indices": "token embeddings were trained (trainable_token_indices)",
    "use_dora": "DoRA scales every column by a norm of base and adapter together",
}
_CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""Values of init_lora_weights with which PEFT also changes the base's weights. PEFT writes `true` instead of them when
it saves an adapter in its converted form, which fits the unchanged base."""

_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MODULE = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)")
"""Path of a linear layer of the decoder in the PyTorch model."""

Weights = npt.NDArray[np.float32]


class PeftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of adapter_config.json that decide what the weights compute."""

    peft_type: str | None = None
    task_type: str | None = None
    r: Annotated[int, msgspec.Meta(gt=0)]
    lora_alpha: float
    rank_pattern: dict[str, Annotated[int, msgspec.Meta(gt=0)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = None


@dataclass(frozen=True)
class Module:
    """One adapted linear layer of the PyTorch model: A [in, rank] and B [rank, out] in float32, B scaled."""

    rank: int
    alpha: float
    a: Weights
    b: Weights


def read_config(peft: Path, name: str) -> PeftConfig:
    """The adapter's adapter_config.json, once it is known that A and B can express the adapter.

    Raises AdapterInvalid, also where `name` is not the name of a model or the weights are not safetensors.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise AdapterInvalid(f"{name!r} cannot be an adapter's name: use letters, digits, '.', '_' and '-'") from None
    path = peft / CONFIG
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterInvalid(f"adapter {name}: {peft} is not a PEFT adapter, it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise AdapterInvalid(f"adapter {name}: {path} cannot be read: {error}") from None
    if isinstance(fields, dict) and (reason := _refusal(fields)):
        raise AdapterInvalid(f"adapter {name}: {reason}")
    try:
        config = msgspec.convert(fields, PeftConfig)
        for pattern in (*(config.rank_pattern or ()), *(config.alpha_pattern or ())):
            re.compile(pattern)
    except (msgspec.ValidationError, re.error) as error:
        raise AdapterInvalid(f"adapter {name}: {path} is not a LoRA config: {error}") from None
    if not (peft / WEIGHTS).is_file():
        if any(peft.glob("*.bin")) or any(peft.glob("*.pt")):
            raise AdapterInvalid(
                f"adapter {name}: {peft} holds pickled weights, which can run code: save it as {WEIGHTS}"
            )
        raise AdapterInvalid(f"adapter {name}: {peft} has no {WEIGHTS}")
    return config


def _refusal(fields: Mapping[str, Any]) -> str | None:
    """Why A and B alone cannot express an adapter with this config; None if nothing in it says so."""
    if (kind := fields.get("peft_type")) != "LORA":
        return f"its type is {kind}, only LORA can be served"
    for option, reason in _REFUSED.items():
        if fields.get(option):
            return f"{reason}, which A and B cannot express"
    if (bias := fields.get("bias", "none")) != "none":
        return f"biases of the base were trained (bias={bias}), which A and B cannot express"
    if (task := fields.get("task_type")) not in (None, "CAUSAL_LM"):
        return f"it was trained for {task}, not for CAUSAL_LM"
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return (
            f"it was started with {start}, which also changed the base's weights: save it from PEFT with "
            "path_initial_model_for_weight_conversion"
        )
    for option, value in fields.items():
        if value and option not in _HARMLESS:
            return f"it uses the PEFT option {option}, which is not known to keep A and B what they are"
    return None


def pattern_value(patterns: Mapping[str, float] | None, path: str, default: float) -> float:
    """The value that PEFT takes from rank_pattern or alpha_pattern for a module.

    As `peft.utils.other.get_pattern_key` has it: keys are regular expressions for the end of the path, whole path
    components, and the first one in the config's order wins.
    """
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def read_modules(peft: Path, config: PeftConfig, name: str) -> dict[str, Module]:
    """Every adapted module by its path in the PyTorch model, such as `model.layers.0.self_attn.q_proj`."""
    sides: dict[str, dict[str, Weights]] = {}
    for key, weights in _load(peft, name).items():
        match = _TENSOR.fullmatch(key)
        if not match or not MODULE.fullmatch(match[1]):
            raise AdapterInvalid(f"adapter {name}: {_foreign(key)}")
        sides.setdefault(match[1], {})[match[2]] = weights
    if not sides:
        raise AdapterInvalid(f"adapter {name}: {WEIGHTS} holds no LoRA weights")
    modules = {}
    for path, pair in sides.items():
        if missing := {"A", "B"} - pair.keys():
            raise AdapterInvalid(f"adapter {name}: {path} has no lora_{missing.pop()}")
        for side, weights in pair.items():
            if weights.ndim != 2:
                raise AdapterInvalid(f"adapter {name}: {path}.lora_{side} has the shape {list(weights.shape)}")
            if not np.isfinite(weights).all():
                raise AdapterInvalid(f"adapter {name}: {path}.lora_{side} has values that are not finite")
        a, b = pair["A"].T, pair["B"].T
        rank = int(pattern_value(config.rank_pattern, path, config.r))
        alpha = float(pattern_value(config.alpha_pattern, path, config.lora_alpha))
        if not a.shape[1] == b.shape[0] == rank > 0:
            raise AdapterInvalid(
                f"adapter {name}: {path} has an A of rank {a.shape[1]} and a B of rank {b.shape[0]}, "
                f"its config says {rank}"
            )
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        modules[path] = Module(rank, alpha, a, b * np.float32(scale))
    return modules


def _load(peft: Path, name: str) -> dict[str, Weights]:
    """Tensors of adapter_model.safetensors in float32. Through torch, because numpy has no bfloat16."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(peft / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AdapterInvalid(f"adapter {name}: {peft / WEIGHTS} cannot be read: {error}") from None
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def _foreign(key: str) -> str:
    """Why a tensor that is not the A or B of a decoder's linear layer cannot be served."""
    if "lora_embedding" in key or ".embed_tokens." in key:
        return f"it adapts the embeddings ({key}), only the decoder's linear layers can be adapted"
    if ".lm_head." in key:
        return f"it adapts the LM head ({key}), only the decoder's linear layers can be adapted"
    if "lora_magnitude_vector" in key:
        return f"it is a DoRA adapter ({key}), which A and B cannot express"
    if key.endswith((".lora_A.bias", ".lora_B.bias")):
        return f"B has a bias of its own ({key}), which A and B cannot express"
    if ".lora_" not in key:
        return f"it holds a whole trained module ({key}), which A and B cannot express"
    return f"{key} belongs to no linear layer of the decoder"
