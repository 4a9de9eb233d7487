"""Held-out figures of the base and of every adapter, whatever answers: PyTorch or a running server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from loraplex.build.demo.dialogues import Message, user
from loraplex.build.demo.heldout_questions import questions
from loraplex.build.demo.skills import SKILLS, exact

BASE = "plex"
"""The name of the base in the bundle, next to those of its adapters."""

Answer = Callable[[str, Sequence[list[Message]]], list[str]]
"""Answers chats with the model or adapter of a name, in their order, without sampling."""


@dataclass(frozen=True)
class Figure:
    """One line of the table. Shares are of `rows`; the base's own questions are asked without an adapter only."""

    name: str
    measure: str
    adapted: float | None
    plain: float
    rows: int


def measure(data: Path, answer: Answer) -> list[Figure]:
    """Ask every held-out question, the adapters' also without their adapter. DATA holds the JSONL folders."""
    asked = questions()
    answers = answer(BASE, [question.messages for question in asked])
    right = sum(exact(given, question.answer) for given, question in zip(answers, asked, strict=True))
    figures = [Figure(BASE, "exact match of the answer", None, right / len(asked), len(asked))]
    for skill in SKILLS:
        rows = skill.read(data, "heldout")
        chats = [[user(row[skill.prompt])] for row in rows]
        expected = [row[skill.response] for row in rows]
        adapted, plain = (
            sum(map(skill.correct, answer(name, chats), expected)) / len(rows) for name in (skill.name, BASE)
        )
        figures.append(Figure(skill.name, skill.measure, adapted, plain, len(rows)))
    return figures


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """One line of the table as text."""
    adapted = "" if figure.adapted is None else f"{figure.adapted:.1%}"
    return figure.name, figure.measure, adapted, f"{figure.plain:.1%}", str(figure.rows)


HEADINGS = ("model", "measure", "with the adapter", "base alone", "held-out rows")


def table(figures: Sequence[Figure], title: str) -> Table:
    """Lay the figures out for a terminal."""
    laid_out = Table(*HEADINGS, title=title)
    for figure in figures:
        laid_out.add_row(*cells(figure))
    return laid_out


def markdown(figures: Sequence[Figure]) -> str:
    """Lay the figures out for a Markdown page."""
    lines = [HEADINGS, ("---", "---", "---:", "---:", "---:"), *map(cells, figures)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
