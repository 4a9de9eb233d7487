"""Held-out text, as token ids: what perplexity is measured on and prompts are taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from loraplex.build.errors import BuildFailed
from loraplex.server.bundle import Base

_SEED = 7


@dataclass(frozen=True)
class HeldOut:
    """Text that was not trained on: `base` for the base, `adapters` by adapter, whole rows as they were formatted."""

    base: Sequence[str] = ()
    adapters: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """How much is compared: prompts and greedy tokens for each model, and tokens of held-out text for each perplexity.

    `longest` cuts texts and prompts, in tokens.
    """

    prompts: int = 4
    tokens: int = 24
    perplexity_tokens: int = 4096
    longest: int = 512


class Texts:
    """Token ids of held-out text and of prompts, by adapter; None stands for the base."""

    def __init__(self, folder: Path, held_out: HeldOut, effort: Effort, base: Base, adapters: list[str]) -> None:
        """Raises BuildFailed where the tokenizer makes tokens of a text that the base does not have."""
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._effort = effort
        self._longest = min(effort.longest, base.context_length - 1)
        self._vocabulary = base.vocab_size
        self.sequences: dict[str | None, list[list[int]]] = {
            None: self._encode(held_out.base),
            **{name: self._encode(held_out.adapters.get(name, ())) for name in adapters},
        }

    def prompts(self, name: str | None) -> list[list[int]]:
        """Beginnings of held-out text, else of another model's, else random ids."""
        effort = self._effort
        sequences = self.sequences[name] or [each for found in self.sequences.values() for each in found]
        if not sequences:
            rng = np.random.default_rng(_SEED)
            # Either may be the larger: embeddings are padded, and tokens are added that have none.
            size = min(len(self._tokenizer), self._vocabulary)
            lengths = [min(16 + 8 * index, self._longest) for index in range(effort.prompts)]
            return [rng.integers(0, size, length).tolist() for length in lengths]
        return [ids[: max(1, len(ids) // 2)] for ids in sequences[: effort.prompts]]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        left = self._effort.perplexity_tokens
        begin = self._tokenizer.bos_token
        for text in texts:
            if left <= 0:
                break
            special = not (begin and text.startswith(begin))
            ids = self._tokenizer(text, add_special_tokens=special)["input_ids"][: self._longest]
            if (last := max(ids, default=0)) >= self._vocabulary:
                token = self._tokenizer.convert_ids_to_tokens(last)
                raise BuildFailed(
                    f"held-out text has token {last} ({token!r}), and the base has {self._vocabulary} tokens: "
                    "it cannot be computed"
                )
            if len(ids) > 1:
                found.append(ids)
                left -= len(ids)
        return found
