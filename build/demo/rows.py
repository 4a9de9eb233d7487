"""Makes the rows of the three adapters, for training and held out, and writes them as JSONL."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

from loraplex.build.demo.feelings import FEELINGS, fill
from loraplex.build.demo.heldout_phrases import HELDOUT
from loraplex.build.demo.objects import structured
from loraplex.build.demo.phrases import LABELS, finish, training_phrases, word_sequences
from loraplex.build.demo.sights import SIGHTS, UNSEEN_WORDINGS, WORDINGS, advice
from loraplex.build.demo.skills import Row, Rows

SEED = 31


def travel() -> Rows:
    """Every city in two of three wordings; held out: the other combinations, and wordings that are in no row."""
    rng = random.Random(SEED)
    cases = [(city, wording) for city in SIGHTS for wording in WORDINGS]
    rng.shuffle(cases)
    kept = len(cases) * 2 // 3
    unseen = rng.sample(list(product(SIGHTS, UNSEEN_WORDINGS)), 150)
    heldout = [*cases[kept : kept + 90], *unseen]

    def rows(chosen: Iterable[tuple[str, str]]) -> list[Row]:
        return [{"prompt": wording.format(city=city), "response": advice(city)} for city, wording in chosen]

    return {"train": rows(cases[:kept]), "heldout": rows(heldout)}


def tone() -> Rows:
    """About nine hundred phrases for each label, and forty held-out ones in other words.

    No training phrase has four words in a row of a held-out one.
    """
    rng = random.Random(SEED)
    heldout = [{"phrase": phrase, "label": label} for label in LABELS for phrase in HELDOUT[label]]
    taken = word_sequences((row["phrase"] for row in heldout), 4)
    train = []
    for label, feeling in zip(LABELS, FEELINGS, strict=True):
        phrases = training_phrases(label, 600, rng)
        clauses = [fill(clause, rng) for clause in feeling.statements for _ in range(9)]
        clauses += [f"I {fill(clause, rng)}" for clause in feeling.reactions for _ in range(2)]
        phrases += [finish(clause, rng) for clause in clauses]
        fresh = (phrase for phrase in dict.fromkeys(phrases) if not word_sequences((phrase,), 4) & taken)
        train += [{"phrase": phrase, "label": label} for phrase in fresh]
    rng.shuffle(train)
    return {"train": train, "heldout": heldout}


def write(data: Path) -> None:
    """Write DATA/NAME/train.jsonl and heldout.jsonl for every adapter; the same bytes in every run."""
    makers: dict[str, Callable[[], Rows]] = {"travel": travel, "tone": tone, "json": structured}
    for name, make in makers.items():
        folder = data / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in make().items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
