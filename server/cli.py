"""The command `loraplex`."""

from __future__ import annotations

import asyncio
import logging
import sys
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

from cyclopts import App
from cyclopts.config import Env

from loraplex.server.bundle import Bundle
from loraplex.server.errors import LoraplexError
from loraplex.server.keys import Key, digest, entry, new_key
from loraplex.server.run import run
from loraplex.server.settings import Settings

app = App(
    name="loraplex",
    help="Serve many LoRA adapters of one model with ONNX Runtime GenAI.",
    version=version("loraplex"),
    config=Env("LORAPLEX_", command=False),
)

DEMO_REQUESTS = """
Ask the travel adapter:

  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "travel", "messages": [{{"role": "user", "content": "What should I see in Paris?"}}]}}'

Ask the tone adapter, streaming:

  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "tone", "stream": true,
    "messages": [{{"role": "user", "content": "I lost my keys and cried all night."}}]}}'
"""


@app.command
def serve(bundle: Path, /, *, settings: Settings | None = None) -> None:
    """Serve a bundle over the OpenAI API until SIGTERM or Ctrl-C.

    Parameters
    ----------
    bundle
        Folder written by `loraplex build`.
    """
    _serve(bundle, settings or Settings())


@app.command
def demo(*, settings: Settings | None = None) -> None:
    """Serve the demo bundle: a toy model with three adapters, for trying things out."""
    with as_file(files("loraplex.adapters") / "demo") as bundle:
        _serve(bundle, settings or Settings(), DEMO_REQUESTS)


@app.command
def key(name: str, /, *, admin: bool = False, adapter: tuple[str, ...] = ()) -> None:
    """Make an API key, and the lines that let it in.

    Parameters
    ----------
    name
        Whose key it is.
    admin
        Whether it may manage adapters.
    adapter
        The models it opens, once for each; all where none is named.
    """
    made = new_key()
    print(f"{made}\n\nFor the file of --keys, which keeps no key itself:\n")
    print(entry(Key(name, digest(made), admin, frozenset(adapter) or None)))


# By name, so that serving needs nothing of what building needs.
app.command("loraplex.build.cli:build", help="Make a bundle of one checkpoint and its LoRA adapters.")
app.command(
    "loraplex.build.adapter_cli:adapter", help="Convert, inspect and verify one adapter against a bundle that exists."
)


def _serve(bundle: Path, settings: Settings, welcome: str | None = None) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        asyncio.run(run(Bundle.open(bundle), settings, welcome))
    except LoraplexError as error:
        sys.exit(f"loraplex: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    app()
