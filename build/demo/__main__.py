"""Makes the demo bundle from nothing: `python -m loraplex.build.demo`, or one of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import App, Parameter
from rich.console import Console

from loraplex.build.demo import evaluation, readme, rows
from loraplex.build.demo.evaluation import BASE
from loraplex.build.demo.skills import SKILLS

# torch, transformers and the exporter take seconds to import, and not every step needs them: they are imported late.

app = App(name="python -m loraplex.build.demo", help="Make the demo bundle from nothing, in full or step by step.")
console = Console()


@Parameter(name="*")
@dataclass(frozen=True)
class Folders:
    """Where things are.

    Parameters
    ----------
    output
        The bundle.
    work
        Tokens and checkpoints: a few hundred megabytes.
    data
        The JSONL rows of the adapters, one folder each.
    """

    output: Path = Path("adapters/demo")
    work: Path = Path(".cache/demo")
    data: Path = Path("adapters")


@app.default
def everything(folders: Folders = Folders()) -> None:
    """Do all the steps: data, base, adapters, bundle, evaluate."""
    data(folders)
    base(folders)
    adapters(folders)
    bundle(folders)
    evaluate(folders)


@app.command
def data(folders: Folders = Folders()) -> None:
    """Write the rows of the adapters, the tokenizer and the tokens of the corpus."""
    from loraplex.build.demo import corpus

    rows.write(folders.data)
    corpus.write(folders.work)


@app.command
def base(folders: Folders = Folders()) -> None:
    """Train the base."""
    from loraplex.build.demo import base as training

    console.print(f"base: loss {training.train(folders.work):.4f}")


@app.command
def adapters(folders: Folders = Folders()) -> None:
    """Train the adapters on the base."""
    from loraplex.build.demo import tuning

    for skill in SKILLS:
        console.print(f"{skill.name}: loss {tuning.train(skill, folders.data, folders.work):.4f}")


@app.command
def bundle(folders: Folders = Folders()) -> None:
    """Export base and adapters into the bundle."""
    from loraplex.build.assembly import build_bundle

    build_bundle(
        folders.work / "base",
        {skill.name: folders.work / skill.name for skill in SKILLS},
        folders.output,
        name=BASE,
        precision="int4",
        head="int8",
        description="A toy chat model of 5.5 million parameters, trained from scratch on generated text.",
        descriptions={skill.name: skill.description for skill in SKILLS},
        sources={skill.name: f"adapters/{skill.name}/train.jsonl" for skill in SKILLS},
    )
    readme.write(folders.output)


@app.command
def evaluate(folders: Folders = Folders(), *, url: str | None = None, write: bool = False) -> None:
    """Print the held-out figures.

    Parameters
    ----------
    url
        API of a server of the bundle, for instance http://127.0.0.1:8000/v1. Without it, the checkpoints in the work
        folder are measured in PyTorch.
    write
        Also write the figures into the README of the bundle; only with a URL.
    """
    if write and url is None:
        raise SystemExit("--write needs --url: the README of the bundle states what a server of it answers")
    if url is None:
        from loraplex.build.demo.local import Local

        for precision, rounded in (("float32", False), ("four-bit weights", True)):
            figures = evaluation.measure(folders.data, Local(folders.work, rounded=rounded))
            console.print(evaluation.table(figures, f"PyTorch, {precision}"))
        return
    from loraplex.build.demo.remote import Remote

    figures = evaluation.measure(folders.data, Remote(url))
    console.print(evaluation.table(figures, url))
    if write:
        readme.write(folders.output, figures, f"python -m loraplex.build.demo evaluate --url {url} --write")


if __name__ == "__main__":
    app()
