"""Tiny random checkpoints and PEFT adapters, made on the spot, and PEFT's own answers to compare with.

Nothing here is a mock: the checkpoints are transformers models saved with a tokenizer of their own, in every family
that a bundle can be made from, small enough to export in about a second.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

# Before anything imports huggingface_hub: no test asks the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Family = Literal["ernie4_5", "gemma", "gemma2", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3"]

VOCABULARY = 160
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PACKED_LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""Phi-3's names."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}


def make_checkpoint(folder: Path, family: Family = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a random float32 checkpoint with its tokenizer; `changes` override fields of its config. Returns folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = _SHAPE | _family(family) | changes
    with quiet():
        config = AutoConfig.for_model(shape.pop("model_type", family), **shape)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Wide enough that greedy answers depend on the prompt instead of repeating one token.
                if name.endswith(".bias"):
                    parameter.normal_(0, 0.5)
                elif parameter.ndim == 2:
                    parameter.normal_(0, 1.0 if "embed" in name or "lm_head" in name else 0.12)
        model.save_pretrained(folder)
        make_tokenizer(folder, config.vocab_size)
    return folder


def _family(family: Family) -> dict[str, Any]:
    match family:
        case "qwen3":
            return {"head_dim": 32}
        case "gemma":
            return {"head_dim": 32, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
        case "gemma2":
            return _family("gemma") | {"sliding_window": 32, "query_pre_attn_scalar": 32}
        case "phi3":
            return {"original_max_position_embeddings": 256, "sliding_window": None}
        case "mistral":
            return {"sliding_window": None}
        case "granite":
            return {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5}
        case _:
            return {}


def make_tokenizer(folder: Path, size: int) -> None:
    """Write a word-level tokenizer whose every id has a visible text of its own: ` w17` is id 17."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    words = special + [f"w{index}" for index in range(len(special), size)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_adapter(
    checkpoint: Path,
    folder: Path,
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] | str | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    seed: int = 1,
    **options: Any,
) -> Path:
    """Write a PEFT adapter whose random weights change greedy answers; `options` go to LoraConfig. Returns folder.

    `targets` defaults to every linear layer of the decoder.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        if targets is None:
            targets = PACKED_LINEARS if model.config.model_type == "phi3" else LINEARS
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            rank_pattern=dict(rank_pattern or {}),
            alpha_pattern=dict(alpha_pattern or {}),
            use_rslora=use_rslora,
            task_type="CAUSAL_LM",
            **options,
        )
        peft = get_peft_model(model, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    parameter.normal_(0, 0.12 if "lora_A" in name else 0.4)
        peft.save_pretrained(folder)
    return folder


def reference_logits(checkpoint: Path, adapter: Path | None, ids: Sequence[int]) -> Any:
    """PEFT's float32 logits [len(ids), vocabulary] for one sequence, as a numpy array."""
    import torch

    model = _reference(checkpoint, adapter)
    with torch.no_grad(), quiet():
        return model(torch.tensor([list(ids)])).logits[0].float().numpy()


def reference_tokens(checkpoint: Path, adapter: Path | None, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that PEFT continues the prompt with, greedily, in float32; EOS does not end it."""
    import torch

    model = _reference(checkpoint, adapter)
    ids = list(prompt_ids)
    with torch.no_grad(), quiet():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt_ids) :]


def _reference(checkpoint: Path, adapter: Path | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # At this size threads only wait for each other, and for whatever else runs on the machine.
    torch.set_num_threads(1)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and warnings of torch, transformers and peft out of the test run."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
