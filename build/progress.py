"""Progress of a step that runs in a process of its own, told to the process that shows it.

The libraries behind the steps draw tqdm bars. In a step's process these are not drawn but sent through a pipe. Where
there is none, as under `olive run`, they are drawn as ever.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

import msgspec

_INTERVAL = 0.2
"""Seconds between two reports of a bar."""
_pipe: Connection | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a bar stands. `total` 0 is unknown; a `note` alone changes no bar."""

    title: str = ""
    done: float = 0
    total: float = 0
    note: str = ""


def note(text: str) -> None:
    """Show a few words beside the bar."""
    _send(Report(note=text))


def send_bars(pipe: Connection) -> None:
    """From now on send every tqdm bar of this process instead of drawing it."""
    global _pipe
    _pipe = pipe
    from tqdm.std import tqdm

    last = 0.0

    def display(bar: Any, *_: Any, **__: Any) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _INTERVAL or bar.n == bar.total:
            last = now
            _send(Report(str(bar.desc or "").strip(": "), bar.n, bar.total or 0))

    tqdm.display = display  # type: ignore[method-assign, assignment]


def receive(pipe: Connection) -> Report | None:
    """The next report, waiting for it; None once the other end is closed."""
    try:
        return msgspec.json.decode(pipe.recv_bytes(), type=Report)
    except (EOFError, OSError):
        return None


def _send(report: Report) -> None:
    if _pipe is not None:
        _pipe.send_bytes(msgspec.json.encode(report))
