"""Trains one LoRA adapter on its JSONL rows, with peft, and writes it as a PEFT folder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from loraplex.build.demo import tokenizer
from loraplex.build.demo.dialogues import user
from loraplex.build.demo.quantization import round_weights
from loraplex.build.demo.skills import Row, Skill
from loraplex.build.demo.training import IGNORED, Batch, optimise

SEED = 43
_CHATS = 64
"""Chats in a step."""


def train(skill: Skill, data: Path, work: Path, *, steps: int | None = None) -> float:
    """Train on DATA/NAME/train.jsonl over WORK/base into WORK/NAME; return the last loss in nats a token."""
    torch.manual_seed(SEED)
    words = tokenizer.load(work / "base")
    base = LlamaForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    round_weights(base)  # the adapter will meet a base of four-bit weights
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=skill.rank,
        lora_alpha=skill.alpha,
        lora_dropout=0.1,
        target_modules=list(skill.targets),
    )
    model = get_peft_model(base, settings)
    rows = skill.read(data, "train")
    loss = optimise(
        model, _batches(skill, rows, words), steps=steps or skill.steps, rate=2e-3, decay=0.0, title=skill.name
    )
    # The folder that the base lies in on this machine is nobody's business.
    model.peft_config["default"].base_model_name_or_path = "base"
    # Left to itself, peft would look for the config of a model of that name on a hub, to learn of changed embeddings.
    model.cpu().save_pretrained(work / skill.name, save_embedding_layers=False)
    return loss


def _batches(skill: Skill, rows: list[Row], words: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Chats of one to three random rows each, padded on the right, without end; only the answers are learned."""
    rng = random.Random(SEED)
    encoded = [_encode(row[skill.prompt], row[skill.response], words) for row in rows]
    while True:
        chats = [rng.choices(encoded, k=rng.choice((1, 1, 1, 2, 3))) for _ in range(_CHATS)]
        length = 1 + max(sum(len(ids) for ids, _ in chat) for chat in chats)
        tokens = torch.full((_CHATS, length), words.pad_token_id)
        labels = torch.full((_CHATS, length), IGNORED)
        for row, chat in enumerate(chats):
            ids = [words.bos_token_id, *(token for turn, _ in chat for token in turn)]
            learned = [IGNORED, *(label for _, turn in chat for label in turn)]
            tokens[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(learned)
        yield tokens, labels


def _encode(prompt: str, response: str, words: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of one turn, without the token that begins a chat."""
    text = words.apply_chat_template([user(prompt)], tokenize=False, add_generation_prompt=True)
    asked = words.encode(str(text), add_special_tokens=False)[1:]
    answered = words.encode(response + tokenizer.END, add_special_tokens=False)
    return [*asked, *answered], [IGNORED] * len(asked) + answered
