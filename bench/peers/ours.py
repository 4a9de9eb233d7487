"""Our own server on the same model, started as its peers are.

    python -m loraplex.bench.peers.ours WORK [--threads 2]

starts it on WORK/bundle, as `python -m loraplex.bench.peers.model WORK` makes it, and stays up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cyclopts import App

from loraplex.bench.machine import versions
from loraplex.bench.peers.peer import Peer, free_port, started, stay
from loraplex.server.bundle import Bundle

NAME = "loraplex"

app = App(help=__doc__)


@contextmanager
def loraplex(work: Path, *, threads: int, streams: int = 16, engine: str = "batched", port: int = 0) -> Iterator[Peer]:
    """`loraplex serve WORK/bundle` while the block runs, for so many streams at once."""
    port = port or free_port()
    command = [sys.executable, "-m", "loraplex.server", "serve", str(work / "bundle"), "--engine", engine]
    command += ["--port", str(port), "--threads", str(threads), "--max-running", str(streams)]
    url = f"http://127.0.0.1:{port}"
    base = Bundle.open(work / "bundle").manifest.base
    notes = f"{base.quantization.method}, {base.quantization.bits} bits, blocks of {base.quantization.group_size}"
    notes += f"; {engine} lane, up to {streams} streams in a step"
    with started(command, url, work / "loraplex.log") as pid:
        yield Peer(NAME, url, command, versions(), notes, pid, base.name)


@app.default
def main(work: Path, /, *, threads: int = 2, engine: str = "batched", port: int = 0) -> None:
    """Start it and stay up."""
    stay(loraplex(work, threads=threads, engine=engine, port=port))


if __name__ == "__main__":
    app()
