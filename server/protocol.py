"""uvicorn's HTTP protocol with limits on requests, which uvicorn's own has only for headers, in its slower one."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from loraplex.server.api.stream import error_body, error_response
from loraplex.server.errors import HeadersTooLarge, InvalidHTTP, LoraplexError, TooManyConnections
from loraplex.server.outlet import Outlet

logger = logging.getLogger("loraplex")

MAX_BYTES = 64 * 1024
"""Of request line and headers; what came in one read with the first byte too many is still taken."""
HEAD_SECONDS = 30.0
"""From the connection, or from the first byte of a further request on it, to the end of the headers."""
IDLE_SECONDS = 30.0
"""From one piece of a body to the next. How long all of it may take is for who reads it to say."""
REPORT_SECONDS = 1.0
"""From one log line about refused connections to the next."""
CROWDED_SECONDS = 2.0
"""What a connection over the limit gets instead of HEAD_SECONDS, to ask and be refused."""
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class Refusals:
    """Counts the connections over the limit: a line for each would fill the log when there are too many."""

    def __init__(self) -> None:
        self._count = 0

    def count(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._count += 1
        if self._count == 1:
            loop.call_later(REPORT_SECONDS, self._report, most)

    def _report(self, most: int) -> None:
        logger.warning("more than %d connections are open: %d refused in %.0f s", most, self._count, REPORT_SECONDS)
        self._count = 0


refusals = Refusals()


class LimitedRequest(HttpToolsProtocol):
    """Answers 431 to headers that are too long, and closes a connection whose request does not go on.

    uvicorn's `limit_concurrency` is the number of connections: to a request on one more the answer is 503.
    """

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0
    _in_head = True
    _in_body = False
    _last_piece = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Taken from uvicorn, which would answer in words of its own.
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._cycles: list[RequestResponseCycle] = []
        """Of requests that are not answered yet: several where a client does not wait for answers (RFC 9112, 9.3.2)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        crowded = self._most is not None and len(self.connections) > self._most
        if crowded:
            refusals.count(self.loop, self._most or 0)
            self.app = refuse_connection
        self._timer = self.loop.call_later(CROWDED_SECONDS if crowded else HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        # uvicorn leaves it to the clock where a client reset the connection, and all of the connection with it.
        self._unset_keepalive_if_required()
        for cycle in self._cycles:  # uvicorn tells the last alone, and the one that is being answered would go on
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._last_piece = self.loop.time()
        super().data_received(data if self._in_body else _without_upgrade(data))
        if self._in_head and not self.transport.is_closing():
            self._bytes += len(data)
            if self._bytes > MAX_BYTES:
                self._refuse(HeadersTooLarge(f"The request's line and headers are longer than {MAX_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in OpenAI's shape."""
        self._refuse(InvalidHTTP(msg))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes, self._in_head = 0, True
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_timer()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._check_body)
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]
        self.scope["extensions"] = Outlet(self.transport, self.flow).extension()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def _check_body(self) -> None:
        """Close the connection if its body has not gone on; look again when it might not have."""
        idle = self.loop.time() - self._last_piece
        # While reading is paused, it is the server that does not go on.
        if idle >= IDLE_SECONDS and not self.flow.read_paused:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(max(1.0, IDLE_SECONDS - idle), self._check_body)

    def _refuse(self, error: LoraplexError) -> None:
        body = msgspec.json.encode(error_body(error))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _without_upgrade(data: bytes) -> bytes:
    """The beginning of a request, its offer to speak another protocol under a name that means nothing.

    A server may ignore the offer (RFC 9110, 7.8), but httptools then takes the body for that protocol's. Java's own
    client offers HTTP/2 with every request that is not encrypted.
    """
    end = data.find(b"\r\n\r\n")
    found = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data[: found.start()] + b"\r\nIgnored" + data[found.end() :] if found else data


async def refuse_connection(scope: Any, receive: Any, send: Any) -> None:
    """The application of a connection that is one too many."""
    refusal = error_response(TooManyConnections("This server has as many connections as it may: try again later"))
    refusal.headers["connection"] = "close"
    await refusal(scope, receive, send)
