"""The command `loraplex`, also as `python -m loraplex.server`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    # The imports take half a second, in which people press Ctrl-C. There is nothing to clear away yet, and an exception
    # that comes up while libraries are imported they lose, or make another.
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted != signal.SIG_IGN:  # a shell that runs a command in the background has it ignore Ctrl-C
        signal.signal(signal.SIGINT, _end)
    if os.getpid() == 1:
        # To the first process of a container Linux delivers no signal that it has no handler for: without one, a
        # container that is stopped while it starts would be killed at the end of its grace period.
        signal.signal(signal.SIGTERM, _end)
    from loraplex.server import cli

    signal.signal(signal.SIGINT, interrupted)
    try:
        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
