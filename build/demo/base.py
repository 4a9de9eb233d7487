"""Trains the base: a small Llama, on the packed tokens of the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loraplex.build.demo import tokenizer
from loraplex.build.demo.corpus import TOKENS
from loraplex.build.demo.training import Batch, optimise

SEED = 41
STEPS = 3000
CONTEXT = 2048


def configuration(words: PreTrainedTokenizerFast) -> LlamaConfig:
    """Describe the model: about 5.5 million parameters."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def train(work: Path, *, steps: int = STEPS, sequences: int = 32, length: int = CONTEXT) -> float:
    """Train on WORK/tokens.npy into WORK/base, where the tokenizer is already; return the last loss in nats a token.

    A step takes `sequences` windows of `length` tokens.
    """
    torch.manual_seed(SEED)
    folder = work / "base"
    model = LlamaForCausalLM(configuration(tokenizer.load(folder)))
    model.generation_config.do_sample = False
    batches = _windows(np.load(work / TOKENS), sequences, length)
    loss = optimise(model, batches, steps=steps, rate=3e-3, decay=0.1, title="base")
    model.cpu().save_pretrained(folder)
    return loss


def _windows(tokens: npt.NDArray[np.uint16], sequences: int, length: int) -> Iterator[Batch]:
    """Cut the tokens into windows, in a new order and at a new offset in every round through them, without end."""
    rng = np.random.default_rng(SEED)
    while True:
        starts = np.arange(rng.integers(length), len(tokens) - length, length)
        rng.shuffle(starts)
        for first in range(0, len(starts) - sequences + 1, sequences):
            window = np.stack([tokens[start : start + length] for start in starts[first : first + sequences]])
            yield torch.from_numpy(window.astype(np.int64))
