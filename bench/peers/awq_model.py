"""What the routed lane and vLLM both serve: a Llama of 3.8B parameters in AWQ's format, its float16 twin, adapters.

Phi-3.5-mini's shape, but with projections of their own, so that an adapter of all seven linear layers is one to both.
Weights are random, in AutoAWQ's `gemm` format as `loraplex.build.awq` describes it; speed does not depend on them.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from loraplex.bench.routed.model import GROUP
from loraplex.build.adapter import convert
from loraplex.build.assembly import PAGED, build_base
from loraplex.build.builder import DATA
from loraplex.build.fingerprint import fingerprint
from loraplex.build.paged import export_paged
from loraplex.server.bundle import MANIFEST, Base, Bundle, Manifest, Quantization, WeightFile, write_manifest

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 96,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "dtype": "float16",
    "torch_dtype": "float16",
}
TINY = {
    "vocab_size": 640,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""Changes that make a model to try the benchmark with."""
RANK = 16
DEVIATION = 0.02
"""Of the weights, about that of a trained model's."""
_STEP = DEVIATION / 4.6
"""Whole numbers from 0 to 15 have a standard deviation of 4.6."""
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column that each four bits of an int32 belong to, from the lowest on."""


class Model:
    """Folders in WORK, made where they are missing: `awq`, `float16`, `peft/a0` ... and the bundle of all."""

    def __init__(self, work: Path, adapters: int, *, tiny: bool = False, device: str = "cuda") -> None:
        self.shape = SHAPE | (TINY if tiny else {})
        self.awq, self.float16 = work / "awq", work / "float16"
        self.names = [f"a{index}" for index in range(adapters)]
        self.peft = {name: work / "peft" / name for name in self.names}
        self._output, self._device = work / "awq-bundle", device
        if not self.awq.is_dir():
            self._write_checkpoints()
            for index, folder in enumerate(self.peft.values()):
                self._write_adapter(folder, index)

    @cached_property
    def bundle(self) -> Bundle:
        """Made when it is first asked for, of which vLLM can make use to start."""
        if not (self._output / MANIFEST).is_file():
            self._build(self._output, self._device)
        return Bundle.open(self._output)

    def _write_checkpoints(self) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        random = torch.Generator(device).manual_seed(0)
        vocabulary, width = self.shape["vocab_size"], self.shape["hidden_size"]
        common: dict[str, torch.Tensor] = {"model.norm.weight": torch.ones(width, dtype=torch.float16)}
        for name in ("model.embed_tokens", "lm_head"):
            common[f"{name}.weight"] = _normal(torch, (vocabulary, width), random)
        packed, plain = dict(common), dict(common)
        for layer in range(self.shape["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                packed[f"{prefix}.{norm}.weight"] = plain[f"{prefix}.{norm}.weight"] = common[
                    "model.norm.weight"
                ].clone()
            for name, (rows, columns) in self._linears().items():
                steps = torch.randint(0, 16, (rows, columns), generator=random, device=device, dtype=torch.int32)
                parts = {
                    "qweight": _pack(torch, steps),
                    "qzeros": _pack(torch, torch.full((rows // GROUP, columns), 8, dtype=torch.int32, device=device)),
                    "scales": torch.full((rows // GROUP, columns), _STEP, dtype=torch.float16),
                }
                packed |= {f"{prefix}.{name}.{part}": values.cpu() for part, values in parts.items()}
                weight = (steps - 8).half() * torch.tensor(_STEP, dtype=torch.float16, device=device)
                plain[f"{prefix}.{name}.weight"] = weight.T.contiguous().cpu()
        quantization = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
        self._save(self.float16, plain, {})
        self._save(self.awq, packed, {"quantization_config": quantization})

    def _linears(self) -> dict[str, tuple[int, int]]:
        """in_features and out_features by name."""
        width, inner = self.shape["hidden_size"], self.shape["intermediate_size"]
        square = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
        return square | {
            "mlp.gate_proj": (width, inner),
            "mlp.up_proj": (width, inner),
            "mlp.down_proj": (inner, width),
        }

    def _save(self, folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
        from safetensors.torch import save_file
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        folder.mkdir(parents=True)
        words = {f"w{index}": index for index in range(self.shape["vocab_size"])}
        tokenizer = Tokenizer(models.WordLevel(words, "w0"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2").save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(self.shape | config, indent=2))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def _write_adapter(self, folder: Path, seed: int) -> None:
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        random = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(self.shape["num_hidden_layers"]):
            for name, (rows, columns) in self._linears().items():
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{prefix}.lora_A.weight"] = _normal(torch, (RANK, rows), random)
                tensors[f"{prefix}.lora_B.weight"] = _normal(torch, (columns, RANK), random)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "random",
            "r": RANK,
            "lora_alpha": RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": [name.partition(".")[2] for name in self._linears()],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
        save_file(tensors, folder / "adapter_model.safetensors")

    def _build(self, output: Path, device: str) -> None:
        bundle = self._export(output) if device == "cuda" else self._build_base(output)
        for name, folder in self.peft.items():
            convert(folder, bundle.manifest.base, output / "adapters" / name, name=name)
        folders = {name: f"adapters/{name}" for name in self.names}
        (output / MANIFEST).unlink()
        write_manifest(output / MANIFEST, msgspec.structs.replace(bundle.manifest, adapters=folders))

    def _build_base(self, output: Path) -> Bundle:
        return build_base(self.awq, output, name="base", precision="int4")

    def _export(self, output: Path) -> Bundle:
        """What `build_base` writes, but for the generator variant, which takes as long again and is not used here."""
        export_paged(self.awq, output / PAGED, precision="int4")
        base = Base(
            name="base",
            architecture="LlamaForCausalLM",
            fingerprint=fingerprint(self.awq),
            dtype="float16",
            quantization=Quantization("awq", 4, GROUP),
            context_length=self.shape["max_position_embeddings"],
            vocab_size=self.shape["vocab_size"],
            projections={
                f"{layer}.{name.replace('self_attn', 'attn')}": shape
                for layer in range(self.shape["num_hidden_layers"])
                for name, shape in self._linears().items()
            },
        )
        weights = WeightFile(f"{PAGED}/{DATA}", (output / PAGED / DATA).stat().st_size)
        write_manifest(output / MANIFEST, Manifest(1, base, {"generator": PAGED, "paged": PAGED}, {}, weights))
        return Bundle.open(output)


def _normal(torch: Any, shape: tuple[int, int], random: Any) -> Any:
    values = torch.randn(shape, generator=random, device=random.device) * DEVIATION
    return values.half().cpu()


def _pack(torch: Any, values: Any) -> Any:
    """Whole numbers below 16, [rows, columns], to int32 [rows, columns / 8]."""
    packed = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int32, device=values.device)
    for nibble, column in enumerate(_ORDER):
        packed |= values[:, column::8] << (4 * nibble)
    return packed
