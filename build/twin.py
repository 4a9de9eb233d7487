"""Float models that compute what quantized weights mean: the reference for everything that a bundle answers.

transformers loads AWQ checkpoints only with kernels that compute in float16, and knows nothing of ONNX graphs. Here the
weights are dequantized, exactly, into a plain float32 model, on which PEFT works as usual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from loraplex.build import awq
from loraplex.build.checkpoint import read_tensors
from loraplex.build.errors import CheckpointUnsupported, first_line
from loraplex.build.graph_weights import iterate_linears
from loraplex.build.lora_inputs import PACKED

HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens.weight"
_LINEAR = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp))\.(\w+_proj)\.weight")


class Checkpoint:
    """The tensors of a checkpoint folder, float or AWQ, read one at a time as float32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored = read_tensors(folder)
        self._config = transformers.AutoConfig.from_pretrained(folder)

    def tensors(self) -> list[str]:
        """The names of all tensors as a float checkpoint has them: a quantized layer has a `weight` only."""
        parts = (".qzeros", ".scales")
        return [name.replace(".qweight", ".weight") for name in self._stored if not name.endswith(parts)]

    def linears(self) -> set[str]:
        """The linear layers of the decoder by their unpacked names, and the LM head."""
        found = {HEAD}
        for match in filter(None, map(_LINEAR.fullmatch, self.tensors())):
            found |= {f"{match[1]}.{part}" for part in PACKED.get(match[2], (match[2],))}
        return found

    def tensor(self, name: str) -> torch.Tensor:
        if name in self._stored:
            tensor: torch.Tensor = self._read(name).float()
            return tensor
        return awq.dequantize(*(self._read(name.replace(".weight", f".{part}")) for part in awq.PARTS))

    def linear(self, module: str) -> torch.Tensor:
        """The weight [out_features, in_features] of a module by its unpacked name, also where it is stored packed."""
        names = self.tensors()
        if f"{module}.weight" in names:
            return self.tensor(f"{module}.weight")
        if module == HEAD:
            return self.tensor(_EMBEDDING)
        parent, _, part = module.rpartition(".")
        for packed, parts in PACKED.items():
            if part in parts and f"{parent}.{packed}.weight" in names:
                widths = self._widths(packed)
                split: tuple[torch.Tensor, ...] = self.tensor(f"{parent}.{packed}.weight").split(widths)
                return split[parts.index(part)]
        raise CheckpointUnsupported(f"{self.folder} has no {module}")

    def _widths(self, packed: str) -> list[int]:
        if packed == "gate_up_proj":
            return [self._config.intermediate_size] * 2
        size = getattr(self._config, "head_dim", None) or self._config.hidden_size // self._config.num_attention_heads
        heads = (self._config.num_attention_heads, *[self._config.num_key_value_heads] * 2)
        return [size * count for count in heads]

    def _read(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._stored[name].file, framework="pt") as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
        return tensor


def load_twin(folder: Path, **options: Any) -> PreTrainedModel:
    """The float32 transformers model of a checkpoint, float or AWQ.

    `options` are those of `from_pretrained`, such as attn_implementation. Raises CheckpointUnsupported where tensors
    are missing or left over.
    """
    checkpoint = Checkpoint(folder)
    return _load(folder, {name: checkpoint.tensor(name) for name in checkpoint.tensors()}, **options)


def load_graph_twin(folder: Path, variant: Path, **options: Any) -> PreTrainedModel:
    """The float32 transformers model of a checkpoint with the weights of linear layers, LM head included, taken from
    the graph that was exported of it.

    Raises CheckpointUnsupported, or ExportFailed where the graph cannot be read.
    """
    checkpoint = Checkpoint(folder)
    linears: dict[str, torch.Tensor] = {}
    for linear in iterate_linears(variant):
        weight = torch.from_numpy(linear.weight)
        sizes = [weight.shape[0]]
        if len(linear.modules) > 1:
            sizes = [checkpoint.linear(module).shape[0] for module in linear.modules]
        linears |= dict(zip(linear.modules, weight.split(sizes), strict=True))
    state = {}
    for name in {*checkpoint.tensors(), f"{HEAD}.weight"}:
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        parts = [f"{parent}.{part}" for part in PACKED.get(last, ())] or [module]
        if all(part in linears for part in parts):
            # Taken out: what is joined is a copy.
            state[name] = torch.cat([linears.pop(part) for part in parts])
        else:
            state[name] = checkpoint.tensor(name)
    # A quantized head is no longer the embedding.
    return _load(folder, state, tie_word_embeddings=False, **options)


def _load(folder: Path, state: Mapping[str, torch.Tensor], **options: Any) -> PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(folder)
    if "tie_word_embeddings" in options:
        config.tie_word_embeddings = options.pop("tie_word_embeddings")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        model, report = getattr(transformers, config.architectures[0]).from_pretrained(
            None, config=config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True, **options
        )
    except RuntimeError as error:
        raise CheckpointUnsupported(f"{folder} does not fit its config.json: {first_line(error)}") from error
    wrong = sorted(str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[key])
    if wrong:
        raise CheckpointUnsupported(f"{folder}: tensors missing, left over or of another shape: {', '.join(wrong[:3])}")
    twin: PreTrainedModel = model.eval()
    return twin
