"""A random-weight Llama of Qwen2.5-0.5B's shape with eight adapters, as a bundle: what servers are compared with.

    python -m loraplex.bench.peers.model WORK [--layers 24] [--large | --small]

`--large` takes TinyLlama's shape instead, 1.0B parameters with this vocabulary; `--small` one of 10M parameters.
Writes WORK/checkpoint, WORK/adapters/0 to 7 (PEFT) and WORK/bundle. Every id has a tokenizer entry of its own that
both loraplex and llama.cpp read: a byte-level BPE of the 256 bytes and pairs of printable ASCII characters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path

from cyclopts import App

from loraplex.build.assembly import build_bundle

Shape = Mapping[str, int | bool]
SHAPE: dict[str, int | bool] = {
    "vocab_size": 8192,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
LARGE = SHAPE | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""TinyLlama's, with 22 layers."""
SMALL = SHAPE | {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
}
"""With 8 layers, 10.0M parameters."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPECIAL = ("<s>", "</s>", "<pad>")
ADAPTERS = 8
RANK = 16

app = App(help=__doc__)


def make_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [chr(code) for code in range(33, 127)]
    merges = list(islice(product(printable, printable), size - len(SPECIAL) - len(alphabet)))
    words = [*SPECIAL, *alphabet, *(first + second for first, second in merges)]
    assert len(set(words)) == size
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    bos, eos, pad = SPECIAL
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad).save_pretrained(
        folder
    )


def make_checkpoint(folder: Path, layers: int, shape: Shape) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_hidden_layers=layers, **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    make_tokenizer(folder, shape["vocab_size"])


def make_adapter(folder: Path, checkpoint: Path, layers: int, shape: Shape, seed: int) -> None:
    """PEFT's two files, with random weights small enough to leave the base's answers sane."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    hidden, middle = shape["hidden_size"], shape["intermediate_size"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    sizes = {"q_proj": (hidden, hidden), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    sizes |= {"o_proj": (hidden, hidden), "gate_proj": (hidden, middle), "up_proj": (hidden, middle)}
    sizes |= {"down_proj": (middle, hidden)}
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer, linear in product(range(layers), LINEARS):
        rows, columns = sizes[linear]
        block = "self_attn" if linear in LINEARS[:4] else "mlp"
        for side, size in (("A", (RANK, rows)), ("B", (columns, RANK))):
            name = f"base_model.model.model.layers.{layer}.{block}.{linear}.lora_{side}.weight"
            weights[name] = torch.randn(size, generator=random) * 0.01
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=list(LINEARS),
        base_model_name_or_path=str(checkpoint),
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors")


@app.default
def main(work: Path, /, *, layers: int | None = None, large: bool = False, small: bool = False) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    shape, usual = (LARGE, 22) if large else (SMALL, 8) if small else (SHAPE, 24)
    layers = layers or usual
    checkpoint = work / "checkpoint"
    config = checkpoint / "config.json"
    if not config.is_file() or json.loads(config.read_text())["num_hidden_layers"] != layers:
        make_checkpoint(checkpoint, layers, shape)
    adapters = {str(seed): work / "adapters" / str(seed) for seed in range(ADAPTERS)}
    for name, folder in adapters.items():
        make_adapter(folder, checkpoint, layers, shape, int(name))
    build_bundle(checkpoint, adapters, work / "bundle", name="base", precision="int4", head="int8")


if __name__ == "__main__":
    app()
