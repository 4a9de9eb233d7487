"""The text that AWQ looks at to find out which weights matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraplex.build.data import Rows
from loraplex.build.document import Path_, Problems
from loraplex.build.recipe import Recipe


def calibration_texts(
    recipe: Recipe, tokenizer: Any, given: Rows | None, training: Mapping[str, Rows], problems: Problems
) -> tuple[str, ...]:
    """Texts of at most `sequence_length` tokens by the base's tokenizer, since AutoAWQ leaves out what is longer."""
    wanted = recipe.quantization.calibration
    samples, length = (wanted.samples, wanted.sequence_length) if wanted else (128, 512)
    path: Path_ = ("quantization", "calibration") if wanted else ("quantization",)
    sources = [given] if given is not None else list(training.values())
    tokens, texts = 0, list[str]()
    # By turns, so that every adapter's rows are among the first samples.
    columns = [rows.texts(tokenizer) for rows in sources]
    for number in range(max(map(len, columns), default=0)):
        for column in columns:
            if number >= len(column) or len(texts) >= samples:
                continue
            # One token fewer than fits: what a piece is encoded to again can be longer than what it was cut from.
            encoded = tokenizer(column[number], return_offsets_mapping=True, add_special_tokens=False)
            offsets = encoded["offset_mapping"][: length - 2]
            if offsets:
                texts.append(column[number][: offsets[-1][1]])
                tokens += len(offsets)
    if not texts:
        problems.add(path, "awq looks at text to find out which weights matter: give calibration.data")
    elif tokens < length:
        problems.add(path, f"awq needs {length} tokens of text at least, the rows have {tokens}: give more of them")
    return tuple(texts)
