"""The three adapters: their rows, and how an answer of each is scored. How they are trained is in the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]
Row = dict[str, str]
Rows = dict[Split, list[Row]]


@dataclass(frozen=True)
class Skill:
    """One adapter. `prompt` and `response` name the columns of its JSONL rows."""

    name: str
    prompt: str
    response: str
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
    Skill("travel", "prompt", "response", "exact match of the answer", exact),
    Skill("tone", "phrase", "label", "accuracy", exact),
    Skill("json", "prompt", "response", "valid JSON, equal to the expected object", same_object),
)
