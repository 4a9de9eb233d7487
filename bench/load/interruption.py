"""Ctrl-C while requests are under way: the first ends the run and keeps what it measured, the next ends the command."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruption() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT sets instead of cancelling the main task; never set where that cannot be.

    A SIGINT that the process was started to ignore stays ignored: so a shell's background jobs outlive a Ctrl-C.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupt() -> None:
        stop.set()
        restore()

    def restore() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except NotImplementedError:  # Windows has none
        yield stop
        return
    try:
        yield stop
    finally:
        if not stop.is_set():
            restore()
