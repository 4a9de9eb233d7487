"""Reading a PEFT adapter: what its config says, and A and B of every module with the LoRA scale folded in.

What A and B alone cannot express is refused by name, and so is every option of the config that is set and not known
here: an adapter of a newer PEFT must not be turned into something that only looks right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt

from loraplex.build.checkpoint import read_header
from loraplex.build.errors import CheckpointUnsupported
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
        *("qalora_group_size", "revision", "runtime_config", "target_modules"),
        # VeLoRA compresses what the backward pass keeps; the forward pass is LoRA's.
        "velora_config",
        # Read here.
        *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "task_type"),
        "use_rslora",
    }
)
_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA switches on within a prompt",
    "arrow_config": "Arrow routes every token to adapters of its own (arrow_config)",
    "kasa_config": "KaSA puts singular values between A and B and truncates the base (kasa_config)",
    "layer_replication": "layers were repeated, so the base is another model (layer_replication)",
    "lora_bias": "B has a bias of its own (lora_bias)",
    "modules_to_save": "whole modules were trained (modules_to_save)",
    "monteclora_config": "MonteCLoRA samples its weights (monteclora_config)",
    "target_parameters": "parameters that belong to no linear layer were adapted (target_parameters)",
    "trainable_token_indices": "token embeddings were trained (trainable_token_indices)",
    "use_bdlora": "BD-LoRA's A or B is block-diagonal and stored packed (use_bdlora)",
    "use_dora": "DoRA scales every column by a norm of base and adapter together (use_dora)",
    "use_qalora": "QA-LoRA pools the inputs before A (use_qalora)",
}
_RESTORABLE = ("corda", "lora_ga", "olora", "pissa")
"""Values of init_lora_weights with which PEFT also changes the base's weights, and can tell afterwards by how much. It
writes `true` instead when it saves an adapter in its converted form, which fits the unchanged base."""

TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_UNUSED = re.compile(r".+\.lora_velora_embed")
"""Tensors that PEFT saves with an adapter and that its forward pass does not use."""
MODULE = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)")
"""Path of a linear layer of the decoder in the PyTorch model."""

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
"""What weights may be stored as, by the name that safetensors has for it."""

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
    alpha: float | None
    """None where it is folded into B already and nobody said what it was."""
    a: Weights
    b: Weights


def read_config(peft: Path, name: str) -> PeftConfig:
    """The adapter's adapter_config.json, once it is known that A and B can express the adapter.

    Raises AdapterInvalid, also where `name` is not the name of a model or the weights are not safetensors.
    """
    check_name(name)
    config, problems = check_config(peft)
    if config is None or problems:
        raise AdapterInvalid(f"adapter {name}: {problems[0]}")
    return config


def check_name(name: str) -> None:
    """Raises AdapterInvalid where clients could not call an adapter so."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise AdapterInvalid(f"{name!r} cannot be an adapter's name: use letters, digits, '.', '_' and '-'") from None


def check_config(peft: Path) -> tuple[PeftConfig | None, list[str]]:
    """What a PEFT folder's config says, None where it cannot be read, and every reason why it cannot be converted."""
    config, problems = parse_config(peft / CONFIG)
    if not (peft / WEIGHTS).is_file():
        if any(peft.glob("*.bin")) or any(peft.glob("*.pt")):
            problems.append(f"{peft} holds pickled weights, which can run code: save it as {WEIGHTS}")
        elif (peft / CONFIG).is_file():
            problems.append(f"{peft} has no {WEIGHTS}")
    return config, problems


def parse_config(path: Path) -> tuple[PeftConfig | None, list[str]]:
    """The same for one adapter_config.json."""
    try:
        fields = parse_fields(path)
    except AdapterInvalid as error:
        return None, [error.message]
    problems = list(_refusals(fields))
    try:
        config = msgspec.convert(fields, PeftConfig)
        for pattern in (*(config.rank_pattern or ()), *(config.alpha_pattern or ())):
            re.compile(pattern)
    except (msgspec.ValidationError, re.error) as error:
        return None, problems or [f"{path} is not a LoRA config: {error}"]
    # Python's json reads the NaN and Infinity that it writes.
    for name, alpha in {"lora_alpha": config.lora_alpha, **(config.alpha_pattern or {})}.items():
        if not math.isfinite(alpha):
            problems.append(f"{path} is not a LoRA config: {name} is {alpha}")
    return config, problems


def parse_fields(path: Path) -> dict[str, Any]:
    """An adapter_config.json as it is. Raises AdapterInvalid where it is not there or not a JSON object."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterInvalid(f"{path.parent} is not a PEFT adapter, it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise AdapterInvalid(f"{path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise AdapterInvalid(f"{path} is not a LoRA config: it is not a JSON object")
    return fields


def _refusals(fields: Mapping[str, Any]) -> Iterator[str]:
    """Every reason why A and B alone cannot express an adapter with this config."""
    if (kind := fields.get("peft_type")) != "LORA":
        yield f"its type is {kind}, only LORA can be served"
        return
    for option, reason in _REFUSED.items():
        if fields.get(option):
            yield f"{reason}, which A and B cannot express"
    if (bias := fields.get("bias", "none")) != "none":
        yield f"biases of the base were trained (bias={bias}), which A and B cannot express"
    if (task := fields.get("task_type")) not in (None, "CAUSAL_LM"):
        yield f"it was trained for {task}, not for CAUSAL_LM"
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESTORABLE):
        yield (
            f"it was started with {start}, which also changed the base's weights: save it from PEFT with "
            "path_initial_model_for_weight_conversion"
        )
    if isinstance(start, str) and start.lower() == "loftq":
        yield "it was started with loftq, so its base is a quantized one that LoftQ made"
    for option, value in fields.items():
        if value and option not in _HARMLESS and option not in _REFUSED:
            yield f"it uses the PEFT option {option}, which is not known to keep A and B what they are"


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
    """Every adapted module by its path in the PyTorch model, such as `model.layers.0.self_attn.q_proj`.

    Names and shapes are those that `peft_shapes.check_weights` let pass. Raises AdapterInvalid where values are not
    finite.
    """
    sides: dict[str, dict[str, Weights]] = {}
    for key, weights in _load(peft, name).items():
        if match := TENSOR.fullmatch(key):
            if not np.isfinite(weights).all():
                raise AdapterInvalid(f"adapter {name}: {match[1]}.lora_{match[2]} has values that are not finite")
            sides.setdefault(match[1], {})[match[2]] = weights
    return {path: scale_module(path, pair["A"].T, pair["B"].T, config) for path, pair in sides.items()}


def scale_module(path: str, a: Weights, b: Weights, config: PeftConfig) -> Module:
    """A [in, rank] and B [rank, out] of a module as trained, with the scale that PEFT gives it folded into B."""
    rank = a.shape[1]
    alpha = float(pattern_value(config.alpha_pattern, path, config.lora_alpha))
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused where the dtype is known
        return Module(rank, alpha, a, b * np.float32(scale))


def _load(peft: Path, name: str) -> dict[str, Weights]:
    """Tensors of adapter_model.safetensors in float32. By hand, so that a server's install can convert adapters."""
    tensors = {}
    try:
        for key, stored in read_header(peft / WEIGHTS).items():
            if not TENSOR.fullmatch(key):
                continue
            dtype = np.dtype(DTYPES[stored.dtype])
            if stored.end - stored.start != dtype.itemsize * math.prod(stored.shape):
                raise AdapterInvalid(f"adapter {name}: {peft / WEIGHTS} is damaged: {key} has another size than shape")
            values = np.fromfile(stored.file, dtype, math.prod(stored.shape), offset=stored.start)
            tensors[key] = values.reshape(stored.shape).astype(np.float32)
    except (CheckpointUnsupported, OSError) as error:
        raise AdapterInvalid(f"adapter {name}: {peft / WEIGHTS} cannot be read: {error}") from None
    return tensors


def explain_foreign(key: str) -> str | None:
    """Why a tensor that is not the A or B of a decoder's linear layer cannot be served; None if it is not needed."""
    if _UNUSED.fullmatch(key):
        return None
    if "lora_embedding" in key or ".embed_tokens." in key:
        return "it adapts the embeddings, only the decoder's linear layers can be adapted"
    if ".lm_head." in key:
        return "it adapts the LM head, only the decoder's linear layers can be adapted"
    if "lora_magnitude_vector" in key:
        return "it is a DoRA adapter, which A and B cannot express"
    if key.endswith((".lora_A.bias", ".lora_B.bias")):
        return "B has a bias of its own, which A and B cannot express"
    if ".lora_" not in key:
        return "it holds a whole trained module, which A and B cannot express"
    return "it adapts what is no linear layer of the decoder"
