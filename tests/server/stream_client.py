"""A client of a stream as the server's code sees it, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.types import Message

from loraplex.server.api.stream import EventStream, Write, event
from loraplex.server.outlet import Outlet, Writes

Tell = Callable[[Write], Coroutine[Any, Any, None]]
Told = Sequence[tuple[bytes, bool]]
"""Events, each with whether more follow at once."""


class Client:
    """A client as the server sees it, with both ways to it."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.keeps_up = asyncio.Event()
        self.keeps_up.set()
        self.by_asgi = 0
        self.aborted = False

    @property
    def write_paused(self) -> bool:
        return not self.keeps_up.is_set()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def write(self, chunk: bytes) -> None:
        size, _, rest = chunk.partition(b"\r\n")
        assert rest.endswith(b"\r\n")
        assert int(size, 16) == len(rest) - 2 > 0
        self.got.append(rest[:-2])

    async def send(self, message: Message) -> None:
        await self.keeps_up.wait()
        if body := message.get("body"):
            self.by_asgi += 1
            self.got.append(body)

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def gets(self, tell: Tell, writes: Writes | None = None, *, directly: bool = True) -> list[bytes]:
        """What comes of a whole answer."""
        found: Any = self  # transport and flow control in one
        extensions = Outlet(found, found).extension() if directly else {}
        answer = EventStream(tell, event, b"end", writes or Writes(then=lambda: None), lambda: None)
        await answer({"type": "http", "method": "POST", "extensions": extensions}, self.receive, self.send)
        return self.got


async def settled() -> None:
    """Wait until all that waits for nothing but its turn is done, as sending the head or what was left."""
    for _ in range(100):
        await asyncio.sleep(0)


def telling(told: Told, error: Exception | None = None) -> Tell:
    async def tell(write: Write) -> None:
        await settled()
        for events, more in told:
            write(events, more)
        if error:
            raise error

    return tell
