"""The command `loraplex`."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from importlib.resources import as_file, files
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Env

from loraplex.server import run
from loraplex.server.bundle import Bundle
from loraplex.server.errors import KeysInvalid, LoraplexError
from loraplex.server.hub import locate_bundle
from loraplex.server.keys import Key, check_entry, digest, entry, new_key
from loraplex.server.logs import configure
from loraplex.server.settings import PREFIX, AtLeastOne, Settings, check_environment

logger = logging.getLogger("loraplex")

app = App(
    name="loraplex",
    help="Serve many LoRA adapters of one model with ONNX Runtime GenAI.",
    version=version("loraplex"),
)
# Of a server alone: what is set for one, for all that runs in its container, is not meant for a build in it.
VARIABLES = Env(PREFIX, command=False)

DEMO_REQUESTS = """
Ask the travel adapter:

  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "travel", "temperature": 0,
    "messages": [{{"role": "user", "content": "What should I see in Paris?"}}]}}'

Ask the tone adapter, streaming:

  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "tone", "temperature": 0, "stream": true,
    "messages": [{{"role": "user", "content": "I lost my keys and cried all night."}}]}}'
"""


@app.command(config=VARIABLES)
def serve(bundle: str, /, *, settings: Settings | None = None) -> None:
    """Serve a bundle over the OpenAI API until SIGTERM or Ctrl-C.

    Parameters
    ----------
    bundle
        Folder written by `loraplex build`, or OWNER/NAME[@REVISION] on the Hugging Face hub; a folder wins.
    """
    _serve(bundle, settings or Settings())


@app.command(config=VARIABLES)
def demo(*, settings: Settings | None = None) -> None:
    """Serve the demo bundle: a toy model with three adapters, for trying things out."""
    with as_file(files("loraplex.adapters") / "demo") as bundle:
        _serve(str(bundle), settings or Settings(), DEMO_REQUESTS)


@app.command
def key(
    name: str,
    /,
    *,
    admin: bool = False,
    adapter: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    requests_per_minute: AtLeastOne | None = None,
    tokens_per_minute: AtLeastOne | None = None,
    service_class: Annotated[str, Parameter(name="--class")] = "default",
) -> None:
    """Make an API key, and the lines that let it in.

    Parameters
    ----------
    name
        Whose key it is.
    admin
        Whether it may manage adapters.
    adapter
        The models it opens, once for each; all where none is named.
    requests_per_minute
        How many requests it may make.
    tokens_per_minute
        How many tokens its prompts and answers may have together.
    service_class
        By which metrics tell keys apart.
    """
    made = new_key()
    limits = (requests_per_minute, tokens_per_minute)
    lines = entry(Key(name, digest(made), admin, frozenset(adapter) or None, *limits, service_class))
    try:
        check_entry(lines)
    except KeysInvalid as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    print(f"{made}\n\nFor the file of --keys, which keeps no key itself:\n\n{lines}")


# By name, so that serving needs nothing of what building needs.
app.command("loraplex.build.cli:build", help="Make a bundle of one checkpoint and its LoRA adapters.")
app.command(
    "loraplex.build.adapter_cli:adapter", help="Convert, inspect and verify one adapter against a bundle that exists."
)
app.command("loraplex.build.publish_cli:publish", help="Publish a bundle to the Hugging Face hub or to Azure ML.")
app.command("loraplex.bench.cli:bench", help="Measure a server of the OpenAI API under load.")


def _serve(bundle: str, settings: Settings, welcome: str | None = None) -> None:
    configure(settings.log_level, settings.log_format)
    for line in check_environment(os.environ):
        logger.warning("%s", line)
    try:
        run.serve(Bundle.open(locate_bundle(bundle)), settings, welcome)
    except LoraplexError as error:
        sys.exit(f"loraplex: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    app()
