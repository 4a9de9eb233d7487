"""How often an engine may die before it is given up."""

from __future__ import annotations

import logging
import time
from collections import deque

logger = logging.getLogger("loraplex.engine")

MAX_RESTARTS = 5
RESTART_WINDOW = 60.0
"""An engine that dies more than MAX_RESTARTS times within so many seconds is not started again."""


class Restarts:
    """The last times that an engine was started again."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MAX_RESTARTS)

    def take(self) -> bool:
        """Whether it may be started once more now, which counts."""
        now = time.monotonic()
        if len(self._times) == MAX_RESTARTS and now - self._times[0] < RESTART_WINDOW:
            logger.critical("the engine died %d times in %.0f s: giving up", MAX_RESTARTS + 1, RESTART_WINDOW)
            return False
        self._times.append(now)
        return True
