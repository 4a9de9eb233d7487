"""Ctrl-C and SIGTERM: a build ends at once, with nothing left running and nothing half done under a final name."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the build to end. No Exception: libraries catch those."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        """The exit status that says so to a shell."""


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Let a signal end this process on the spot, as long as it has nothing to stop and nothing to clear away.

    An exception would not do: libraries turn it into another while they are imported, and threads that download go on
    until they have all they came for.
    """
    with _handled(_leave):
        yield


@contextlib.contextmanager
def raises() -> Iterator[None]:
    """Let a signal raise Interrupted. Once that has left the block, further signals are ignored."""
    with _handled(_raise):
        yield


def _leave(number: int, _: FrameType | None) -> None:
    os.write(2, b"\nloraplex: interrupted\n")  # not sys.stderr, which may be printing just now
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    both = (signal.SIGINT, signal.SIGTERM)
    # A shell that runs a command in the background has it ignore Ctrl-C.
    before = {each: found for each in both if (found := signal.getsignal(each)) != signal.SIG_IGN}
    after = before
    for each in before:
        signal.signal(each, handler)
    try:
        yield
    except Interrupted:
        after = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for each, found in after.items():
            signal.signal(each, found)
