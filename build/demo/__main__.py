"""Makes what the demo's recipe needs, and asks a server of the bundle: `python -m loraplex.build.demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import App, Parameter
from rich.console import Console

from loraplex.build.demo import evaluation, readme, rows

# torch and transformers take seconds to import, and not every step needs them: they are imported late.

app = App(
    name="python -m loraplex.build.demo",
    help="Make the data and the base of the demo bundle, and measure what a server of it answers. Between the two goes "
    "`loraplex build adapters/recipes/demo.yaml --output adapters/demo`.",
)
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
        Tokens and the base: a hundred megabytes.
    data
        The JSONL rows of the adapters, one folder each.
    """

    output: Path = Path("adapters/demo")
    work: Path = Path(".cache/demo")
    data: Path = Path("adapters")


@app.command
def data(folders: Folders = Folders()) -> None:
    """Write the rows of the adapters, the tokenizer, the tokens of the corpus, and texts that are not in it."""
    from loraplex.build.demo import corpus

    rows.write(folders.data)
    corpus.write_rows(folders.work)
    corpus.write(folders.work)


@app.command
def base(folders: Folders = Folders()) -> None:
    """Train the base."""
    from loraplex.build.demo import base as training

    console.print(f"base: loss {training.train(folders.work):.4f}")


@app.command
def evaluate(folders: Folders = Folders(), *, url: str = "http://127.0.0.1:8000/v1", write: bool = False) -> None:
    """Print the held-out figures of a server of the bundle.

    Parameters
    ----------
    url
        Its API.
    write
        Also write them into the README of the bundle.
    """
    from loraplex.build.demo.remote import Remote

    figures = evaluation.measure(folders.data, Remote(url))
    console.print(evaluation.table(figures, url))
    if write:
        readme.write(folders.output, figures, f"python -m loraplex.build.demo evaluate --url {url} --write")


if __name__ == "__main__":
    app()
