"""Room for processes that work beside the engine: a number of them at a time, within the memory that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Room:
    """Given out in the order in which it is asked for; who finds none waits. Used from one event loop."""

    def __init__(self, places: int, memory: Callable[[], int]) -> None:
        """`memory` says how many bytes all of them may take; it is asked whenever none of them runs."""
        self._places = places
        self._memory = memory
        self._turn = asyncio.Lock()
        """Held by the first of those that wait."""
        self._left = asyncio.Event()
        self._running = 0
        self._taken = 0
        self._limit = 0

    @asynccontextmanager
    async def take(self, memory: int) -> AsyncIterator[None]:
        """Wait for a place and this many bytes. Who wants more than there are gets them alone."""
        async with self._turn:
            while self._running and (self._running == self._places or self._taken + memory > self._limit):
                self._left.clear()
                await self._left.wait()
            if not self._running:
                self._limit = self._memory()
            self._running += 1
            self._taken += memory
        try:
            yield
        finally:
            self._running -= 1
            self._taken -= memory
            self._left.set()
