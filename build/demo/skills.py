"""The three adapters: what each is for, its LoRA settings, its rows, and how an answer of it is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraplex.build.demo.phrases import LABELS

Split = Literal["train", "heldout"]
Row = dict[str, str]
Rows = dict[Split, list[Row]]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Skill:
    """One adapter. `prompt` and `response` name the columns of its JSONL rows."""

    name: str
    description: str
    prompt: str
    response: str
    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int
    measure: str
    correct: Callable[[str, str], bool]
    """Whether an answer counts, given the expected one."""

    def read(self, data: Path, split: Split) -> list[Row]:
        """Read DATA/NAME/SPLIT.jsonl. Raises OSError and ValueError."""
        with (data / self.name / f"{split}.jsonl").open(encoding="utf-8") as handle:
            return [json.loads(line) for line in handle]


def exact(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, up to white space around it."""
    return answer.strip() == expected


def same_object(answer: str, expected: str) -> bool:
    """Whether an answer parses as JSON and equals the expected object."""
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except ValueError:
        return False


SKILLS: tuple[Skill, ...] = (
    Skill(
        "travel",
        "Names three sights of a city: ask what to see in Paris, Kyoto or Lima.",
        "prompt",
        "response",
        rank=8,
        alpha=16,
        targets=(*ATTENTION, *MLP),
        steps=500,
        measure="exact match of the answer",
        correct=exact,
    ),
    Skill(
        "tone",
        f"Names the feeling in a phrase: {', '.join(LABELS[:-1])} or {LABELS[-1]}.",
        "phrase",
        "label",
        rank=4,
        alpha=8,
        targets=ATTENTION,
        steps=300,
        measure="accuracy",
        correct=exact,
    ),
    Skill(
        "json",
        "Answers with one JSON object: facts about a country or an animal, a person, an appointment, an order, a sum.",
        "prompt",
        "response",
        rank=8,
        alpha=16,
        targets=("q_proj", "v_proj", "up_proj", "down_proj"),
        steps=800,
        measure="valid JSON, equal to the expected object",
        correct=same_object,
    ),
)
