"""The short way of events to a client that keeps up, past the coroutines of ASGI.

What is touched for an event is not in the processor's cache when the next one comes, which is most of what an event
costs. So the objects on this way are few, and have slots.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any, Self

from uvicorn.protocols.http.flow_control import FlowControl

EXTENSION = "loraplex"
"""Of the ASGI scope: https://asgi.readthedocs.io/en/latest/extensions.html."""
GROUP = 16
"""Writes that follow each other. More gain nothing, and their events wait for longer."""
LARGEST_PIECE = 64 * 1024
"""Bytes of events from which on no more are added to what is sent at once."""

logger = logging.getLogger("loraplex")


class Outlet:
    """Of one response whose body is chunked; its head and its end go through ASGI."""

    __slots__ = ("_flow", "_transport", "context")

    def __init__(self, transport: asyncio.WriteTransport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow
        self.context = copy_context()
        """Of its log lines: events are written in that of the engine's connection."""

    def extension(self) -> dict[str, dict[object, object]]:
        """What an ASGI scope has for `of` to find it."""
        return {EXTENSION: {"outlet": self}}

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Self | None:
        """That of the request in whose context this runs; None under another server than ours."""
        extension: dict[str, Self] = (scope.get("extensions") or {}).get(EXTENSION, {})
        found = extension.get("outlet")
        if found:
            found.context = copy_context()
        return found

    @property
    def open(self) -> bool:
        """The client is there and keeps up."""
        # A transport closes before its protocol hears of a client that left.
        return not (self._flow.write_paused or self._transport.is_closing())

    def write(self, events: bytes) -> None:
        """Write one chunk (RFC 9112, 7.1), which is not empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(events), events))

    def cut(self) -> None:
        """Close the connection without waiting for the client to read what was written: it may never do so."""
        self._transport.abort()


class Writes:
    """The writes of one step of the engine; `then` is called after them. Outside of steps, each is done at once.

    Within, they are done in groups: the kernel's code for them stays in the processor's cache, and ours does. With 128
    streams, a write between two events that are made takes twice as long as one after another.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._in_step = False
        self._group: list[tuple[Outlet, bytes]] = []

    def __enter__(self) -> None:
        self._in_step = True

    def __exit__(self, *_: object) -> None:
        self._in_step = False
        self._write()
        self._then()

    def add(self, outlet: Outlet, events: bytes) -> None:
        self._group.append((outlet, events))
        if not self._in_step or len(self._group) == GROUP:
            self._write()

    def _write(self) -> None:
        for outlet, events in self._group:
            try:
                outlet.write(events)
            except Exception:  # the others have connections of their own
                outlet.context.run(logger.exception, "an event cannot be written")
        self._group.clear()


class EventWriter:
    """Takes the events of one response, which leave at once or are left for ASGI, never out of order."""

    __slots__ = ("_held", "_writes", "direct", "left", "news", "outlet")

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._held = b""
        """Events that wait for those that follow at once."""
        self.outlet: Outlet | None = None
        self.direct = False
        """The head and all that was left has been sent."""
        self.left: deque[bytes] = deque()
        """Events that could not leave where they were written."""
        self.news = asyncio.Event()
        """Something was left."""

    def write(self, events: bytes, more: bool = False) -> None:
        """As `api.stream.Write`."""
        if more or self._held:
            events = self._held + events
            if more and len(events) < LARGEST_PIECE:
                self._held = events
                return
            self._held = b""
        if not events:
            return
        if self.direct and self.outlet is not None and self.outlet.open:
            self._writes.add(self.outlet, events)
        else:
            self.left.append(events)
            self.direct = False
            self.news.set()
