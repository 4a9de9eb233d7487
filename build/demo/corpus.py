"""Turns facts, chats and prose into the base's training tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from loraplex.build.demo import dialogues, prose, tokenizer
from loraplex.build.demo.dialogues import Message

SEED = 20
DOCUMENTS = 240_000
"""About 24 million tokens."""
TOKENS = "tokens.npy"
ROWS = {"calibration": 977, "heldout": 31337}
"""Seeds of the files of texts that the recipe names: for quantization, and for the perplexity of the base."""
_ROWS = 500
_CHATS = 0.7


def render(messages: list[Message]) -> str:
    """Write a chat as the chat template does, without the prompt for the next answer."""
    return tokenizer.BEGIN + "".join(f"<|{m['role']}|>{m['content']}{tokenizer.END}" for m in messages)


def documents(count: int, seed: int = SEED) -> Iterator[str]:
    """Make up `count` texts, each with its special tokens; the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < _CHATS:
            yield render(dialogues.dialogue(rng))
        else:
            yield tokenizer.BEGIN + prose.text(rng) + tokenizer.END


def write_rows(work: Path) -> None:
    """Write WORK/calibration.jsonl and WORK/heldout.jsonl, texts that the base is not trained on."""
    work.mkdir(parents=True, exist_ok=True)
    for name, seed in ROWS.items():
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(_ROWS, seed))
        (work / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def write(work: Path, count: int = DOCUMENTS) -> PreTrainedTokenizerFast:
    """Train the tokenizer into WORK/base and write the packed tokens, uint16, into WORK/tokens.npy."""
    learned = tokenizer.train(documents(min(count, 20_000), seed=SEED + 1))
    learned.save_pretrained(work / "base")
    packed: list[np.ndarray] = []
    batch: list[str] = []
    for document in tqdm(documents(count), total=count, desc="corpus", unit=" documents"):
        batch.append(document)
        if len(batch) == 2000:
            packed += _encode(learned, batch)
            batch.clear()
    packed += _encode(learned, batch)
    np.save(work / TOKENS, np.concatenate(packed))
    return learned


def _encode(learned: PreTrainedTokenizerFast, batch: list[str]) -> list[np.ndarray]:
    encodings = learned.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]
