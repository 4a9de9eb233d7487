"""What a checkpoint must be like for its export to be exact; everything else is refused by name.

The lists are what the tests compare with PyTorch token by token, with and without adapters. The model builder takes
many more architectures and writes some of them wrong: OLMo gets another normalization, Llama graphs ignore linear,
dynamic and YaRN scaling of RoPE, and Gemma 3 and SmolLM 3 fail against transformers 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.build import awq
from loraplex.build.checkpoint import read_config, read_tensors
from loraplex.build.errors import CheckpointUnsupported, first_line
from loraplex.server.errors import BundleInvalid
from loraplex.server.text.template import ChatTemplate

_PLAIN = frozenset({"default"})
FAMILIES = {
    "Ernie4_5ForCausalLM": _PLAIN,
    "Gemma2ForCausalLM": _PLAIN,
    "GemmaForCausalLM": _PLAIN,
    "GraniteForCausalLM": _PLAIN,
    "LlamaForCausalLM": frozenset({"default", "llama3"}),
    "MistralForCausalLM": _PLAIN,
    "Phi3ForCausalLM": frozenset({"default", "longrope"}),
    "Qwen2ForCausalLM": _PLAIN,
    "Qwen3ForCausalLM": _PLAIN,
}
"""Architectures with the types of RoPE scaling that their exported graphs get right."""

_WEIGHT = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.q?weight")
_GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class SupportedConfig:
    """What the export needs to know of config.json. `context_length` is what the graph computes exactly, in tokens."""

    architecture: str
    vocab_size: int
    context_length: int
    window: int | None
    """Sliding window that the graph lacks, in tokens; None where it has what the checkpoint has. Up to this length a
    window changes nothing, so `context_length` ends there."""
    awq_group_size: int | None = None
    """Weights to a scale of a checkpoint that is quantized by AWQ."""


def check_checkpoint(folder: Path) -> SupportedConfig:
    """Refuse what cannot be exported exactly. Raises CheckpointUnsupported. Reads no weights, only their headers."""
    raw = read_config(folder)
    architecture = (raw.get("architectures") or ["an unnamed architecture"])[0]
    if architecture not in FAMILIES:
        raise CheckpointUnsupported(f"{folder} is {architecture}; bundles can be made of {', '.join(FAMILIES)}")
    awq_group_size = awq.group_size(folder)
    from transformers import AutoConfig

    # Defaults depend on the model class, so what counts is the loaded config, not the file.
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointUnsupported(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from error
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in FAMILIES[architecture]:
        raise CheckpointUnsupported(
            f"{folder} scales RoPE by {rope!r}, which exported graphs of {architecture} do not have; "
            f"they have {' and '.join(sorted(FAMILIES[architecture]))}"
        )
    _check_vocabulary(folder, config.vocab_size)
    length, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    # The builder gives a window to the layers that layer_types names, and to none where the config has no such list.
    if window is None or window >= length or getattr(config, "layer_types", None) is not None:
        window = None
    return SupportedConfig(architecture, config.vocab_size, window or length, window, awq_group_size)


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a checkpoint. Raises CheckpointUnsupported where it has none that can be loaded, or
    a chat template with which no server would start.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # Whatever the library of a tokenizer's form raises, for one in Rust that is Exception itself.
        told = " ".join(str(error).split())
        raise CheckpointUnsupported(f"{folder} has no tokenizer that transformers can load: {told}") from error
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if template is not None:
        tokens = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        try:
            ChatTemplate(template, tokens)
        except BundleInvalid as error:
            raise CheckpointUnsupported(f"{folder}: {error.message}") from None
    return tokenizer


def check_quantizable(folder: Path, group_size: int, algorithm: str) -> None:
    """Refuse group sizes that the quantizer cannot do for a checkpoint's shapes. Raises CheckpointUnsupported.

    k_quant packs two zero points to a byte without padding, so it needs an even number of groups in every row.
    """
    if group_size not in _GROUP_SIZES:
        raise CheckpointUnsupported(f"group_size is {group_size}, it can be {', '.join(map(str, _GROUP_SIZES))}")
    if algorithm != "k_quant":
        return
    for name, tensor in read_tensors(folder).items():
        if _WEIGHT.fullmatch(name) and -(-tensor.shape[1] // group_size) % 2:
            raise CheckpointUnsupported(
                f"{folder}: the {tensor.shape[1]} input features of {name} are an odd number of groups of "
                f"{group_size}, which k_quant cannot pack: take a smaller group_size or the algorithm rtn"
            )


def is_quantizable(folder: Path, group_size: int, algorithm: str) -> bool:
    """Whether `check_quantizable` has nothing against it."""
    try:
        check_quantizable(folder, group_size, algorithm)
    except CheckpointUnsupported:
        return False
    return True


def _check_vocabulary(folder: Path, size: int) -> None:
    """The builder takes any linear layer with as many outputs as the vocabulary has tokens for the LM head."""
    for name, tensor in read_tensors(folder).items():
        if not _WEIGHT.fullmatch(name):
            continue
        outputs = 8 * tensor.shape[1] if name.endswith(".qweight") else tensor.shape[0]
        if outputs == size:
            raise CheckpointUnsupported(
                f"{folder}: {name} has as many outputs as the vocabulary has tokens ({size}), so the model builder "
                "would take it for the LM head"
            )
