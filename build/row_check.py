"""Whether a base's tokenizer makes of training rows what a recipe wants to be learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraplex.build.data import Rows
from loraplex.build.document import Path_, Problems
from loraplex.build.errors import first_line
from loraplex.build.recipe import Recipe

_BATCH = 1000
"""Rows in memory as tokens at a time."""


def check_rows(
    recipe: Recipe,
    base: Path,
    tokenizer: Any,
    vocabulary: int,
    training: Mapping[str, Rows],
    heldout: Mapping[str, Rows],
    problems: Problems,
) -> None:
    """Note chats that the base's template refuses, answers that would not be found, and tokens beyond `vocabulary`.

    `tokenizer` is the base's, as transformers loads it. Rows of either kind are by adapter.
    """
    for name, adapter in recipe.adapters.items():
        path = ("adapters", name)
        if adapter.chat_template and tokenizer.chat_template is None:
            problems.add((*path, "chat_template"), f"{base} has none: give a text_template")
            continue
        for field, found in (("data", training), ("evaluation_data", heldout)):
            if name not in found:
                continue
            texts = _texts(found[name], tokenizer, (*path, field), problems)
            learned = adapter.response_template if field == "data" else None
            if learned is not None or len(tokenizer) > vocabulary:
                _check_tokens(texts, tokenizer, vocabulary, learned, adapter.max_seq_len, (*path, field), problems)


def answer_start(ids: Sequence[int], marker: Sequence[int]) -> int | None:
    """Where the last answer of a row begins: the position after the last occurrence of the marker; None without one."""
    size, wanted = len(marker), list(marker)
    for start in range(len(ids) - size, -1, -1):
        if list(ids[start : start + size]) == wanted:
            return start + size
    return None


def _texts(rows: Rows, tokenizer: Any, path: Path_, problems: Problems) -> list[str]:
    """The rows as they are trained on; empty after a problem."""
    if rows.columns != ("messages",):
        return rows.texts()
    texts = []
    for number, row in enumerate(rows.rows, 1):
        try:
            texts += Rows([row], rows.columns, None).texts(tokenizer)
        except Exception as error:
            # Whatever a template raises: jinja2's errors, and Python's own of what it does with a message.
            problems.add(path, f"row {number}: the base's chat template refuses it: {first_line(error)}")
            return []
    return texts


def _check_tokens(
    texts: Sequence[str],
    tokenizer: Any,
    vocabulary: int,
    marker: str | None,
    longest: int,
    path: Path_,
    problems: Problems,
) -> None:
    """`marker` is what an answer begins with; None where all of a row is learned.

    A tokenizer may write the same text in other tokens where other text is before it, and answers go by tokens.
    """
    wanted = tokenizer.encode(marker or "", add_special_tokens=False)
    cut = marker is not None and bool(texts)
    for number, ids in enumerate(_encoded(texts, tokenizer), 1):
        if (last := max(ids, default=0)) >= vocabulary:
            text = tokenizer.convert_ids_to_tokens(last)
            problems.add(path, f"row {number} has token {last} ({text!r}), and the base has {vocabulary} tokens")
            return
        if marker is None:
            continue
        if (start := answer_start(ids, wanted)) is None:
            problems.add(
                (*path[:-1], "response_template"),
                f"row {number} does not have the tokens that {marker!r} has by itself, so nothing of it is learned: "
                "take text that is tokens of its own wherever it stands, such as a special token",
            )
            return
        cut = cut and start >= longest
    if cut:
        problems.add((*path[:-1], "max_seq_len"), f"cuts every row before its answer, at {longest} tokens")


def _encoded(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    for start in range(0, len(texts), _BATCH):
        yield from tokenizer(texts[start : start + _BATCH], add_special_tokens=False, verbose=False)["input_ids"]
