"""Writes the README that lies in the demo bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraplex.build.demo.evaluation import Figure, markdown
from loraplex.build.demo.skills import SKILLS

_TEXT = """\
# Demo bundle

A **toy**: one Llama-shaped chat model of 5.5 million parameters, trained from scratch on text that a program wrote, and
three LoRA adapters for it. It is here so that a server with several adapters of one real model can be tried in a
second and without a download. It knows a few dozen countries, animals and small numbers, and invents the rest: use it
for nothing else.

| adapter | what it does | rank | adapted layers | trained on |
| --- | --- | ---: | --- | --- |
{adapters}

The base (`plex`) has 6 layers, 4 heads of 64 with 2 key-value heads, a byte-level BPE vocabulary of 1600 and a context
of 2048 tokens. Characters beyond the Latin alphabets are single bytes, so that every Japanese character and every emoji
takes several tokens. It was trained for linear layers of four bits (round-to-nearest, groups of 32) and is stored so
(k_quant, groups of 32), with the LM head in eight bits and the embeddings in float32.

## How it was made

One command makes the data, trains the base and the adapters, writes this bundle and prints held-out figures; a GPU
takes a few minutes for it, a CPU many hours:

    python -m loraplex.build.demo --output adapters/demo --work .cache/demo

All text comes from `build/demo` with fixed seeds; nothing is downloaded. The rows of the adapters are in
`adapters/NAME/train.jsonl` and `heldout.jsonl`.

## Held-out figures

{figures}

- `plex`: questions in wordings, combinations and chats that the corpus does not hold, some after other turns, some with
  a system prompt that asks for short answers.
- `travel`: wordings, and combinations of city and wording, that are in no training row.
- `tone`: phrases that share no four words in a row with a training phrase. The base has met the words of feeling in
  other sentences, never the labels. Nearly every phrase holds a word of feeling that the corpus has: this model cannot
  judge a phrase that takes knowledge of the world.
- `json`: wordings, countries, names and items that are in no training row; for some animals, a new combination of
  animal and wording.
"""


def write(output: Path, figures: Sequence[Figure] = (), command: str = "") -> None:
    """Write OUTPUT/README.md; `command` is the one that gave the figures."""
    adapters = "\n".join(
        f"| `{s.name}` | {s.description} | {s.rank} | {', '.join(s.targets)} | `adapters/{s.name}` |" for s in SKILLS
    )
    measured = "Not measured."
    if figures:
        measured = f"{markdown(figures)}\n\nMeasured over HTTP at temperature 0 with\n\n    {command}"
    text = _TEXT.format(adapters=adapters, figures=measured)
    (output / "README.md").write_text(text, encoding="utf-8")
