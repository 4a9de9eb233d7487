"""Writes the README that lies in the demo bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraplex.build.demo.evaluation import Figure, markdown
from loraplex.server.bundle import AdapterManifest, Bundle, read_adapter_manifest

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
takes several tokens. Its linear layers are in {quantization}, the LM head in eight bits, the embeddings in float32.

## How it was made

    python -m loraplex.build.demo data
    python -m loraplex.build.demo base
    loraplex build adapters/recipes/demo.yaml --output adapters/demo
    loraplex serve adapters/demo
    python -m loraplex.build.demo evaluate --write

The first makes up all text, with fixed seeds; nothing is downloaded. A GPU takes a few minutes for the base and for the
build; a CPU many hours for the one and about one for the other. The rows of the adapters are in
`adapters/NAME/train.jsonl` and `heldout.jsonl`; what the build compared and what it cost is in `verification.html`.

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


def write(output: Path, figures: Sequence[Figure], command: str) -> None:
    """Write OUTPUT/README.md, for a bundle there; `command` is the one that gave the figures."""
    bundle = Bundle.open(output)
    quantization = bundle.manifest.base.quantization
    adapters = {name: read_adapter_manifest(bundle.adapter(name)) for name in bundle.manifest.adapters}
    text = _TEXT.format(
        adapters="\n".join(map(_line, adapters, adapters.values())),
        quantization=f"four bits ({quantization.method}, groups of {quantization.group_size})",
        figures=f"{markdown(figures)}\n\nMeasured over HTTP at temperature 0 with\n\n    {command}",
    )
    (output / "README.md").write_text(text, encoding="utf-8")


def _line(name: str, adapter: AdapterManifest) -> str:
    ranks = ", ".join(map(str, sorted(set(adapter.ranks.values()))))
    layers = ", ".join(dict.fromkeys(each.rpartition(".")[2] for each in adapter.ranks))
    return f"| `{name}` | {adapter.description} | {ranks} | {layers} | `adapters/{name}` |"
