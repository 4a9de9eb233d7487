"""Tells an engine that hangs from one that is slow, and ends it.

One that is slow answers between two steps; one whose thread is stuck in a driver's call, or goes round for ever, does
not. Nor does it die, and without this every request would wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from loraplex.server.engine.connection import Connection
from loraplex.server.engine.messages import Ping

logger = logging.getLogger("loraplex.engine")

LOOKS = 8
"""How often it looks in the time that an engine gets."""
TELLING = 2.0
"""Seconds that an engine gets to write down where it is, on a machine that may be busy."""


class Watchdog:
    """Asks an engine that has work for a sign of life, and kills it where none comes."""

    def __init__(self, timeout: float, has_work: Callable[[], bool]) -> None:
        """`timeout` is what a step may take, in seconds; 0 is no limit."""
        self.bit = False
        """The process that was watched last was killed."""
        self.timeout = timeout
        self._has_work = has_work
        self._asked = False

    def answered(self) -> None:
        """The engine has come round to a Ping."""
        self._asked = False

    @asynccontextmanager
    async def over(self, connection: Connection) -> AsyncIterator[None]:
        """Watch a process that has loaded its base, until the context is left."""
        self.bit = self._asked = False
        watching = asyncio.create_task(self._watch(connection), name="engine watchdog")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, connection: Connection) -> None:
        if not self.timeout:
            return
        clock = asyncio.get_running_loop().time
        period = self.timeout / LOOKS
        silence = 0.0
        while silence < self.timeout:
            before = clock()
            await asyncio.sleep(period)
            if self._asked:
                slept = clock() - before
                # Much later, and this process stood still, be it stopped or asleep with its machine: so may the engine
                # have done, and what it has said since is not read yet.
                silence += slept if slept < 2 * period else 0.0
            elif self._has_work():
                silence = 0.0
                self._asked = True
                connection.send(Ping())
        self.bit = True
        logger.error("the engine has been at one step for %.0f s (--engine-timeout): it is killed", silence)
        connection.tell_where()
        await asyncio.sleep(TELLING)
        connection.kill()
