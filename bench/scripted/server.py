"""`loraplex serve` with a scripted engine in the place of the real one.

    python -m loraplex.bench.scripted.server adapters/demo --port 8000 --engine-options="--seconds 0.02"

The engine's options are those of `python -m loraplex.bench.scripted.engine --help`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from cyclopts import App

from loraplex.server import run
from loraplex.server.bundle import Bundle
from loraplex.server.errors import LoraplexError
from loraplex.server.logs import configure
from loraplex.server.settings import Settings

app = App(help=__doc__)


def engine_command(options: str) -> list[str]:
    """What starts a scripted engine."""
    return [sys.executable, "-m", "loraplex.bench.scripted.engine", *shlex.split(options)]


@app.default
def serve(bundle: Path, /, *, engine_options: str = "", settings: Settings | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    bundle
        Folder written by `loraplex build`: its tokenizer and chat template are used, its weights are not.
    engine_options
        Of the scripted engine, in one string.
    """
    settings = settings or Settings()
    configure(settings.log_level, settings.log_format)
    try:
        run.serve(Bundle.open(bundle), settings, engine_command=engine_command(engine_options))
    except LoraplexError as error:
        sys.exit(f"loraplex: {error.message}")


if __name__ == "__main__":
    app()
