"""uvicorn's HTTP protocol with limits on what comes before a body, which uvicorn's own has only in its slower one."""

from __future__ import annotations

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_BYTES = 64 * 1024
"""Of request line and headers; what came in one read with the first byte too many is still taken."""
MAX_SECONDS = 30.0
"""From the connection, or from the first byte of a further request on it, to the end of the headers."""

_TOO_LARGE = msgspec.json.encode(
    {
        "error": {
            "message": f"The request's line and headers are longer than {MAX_BYTES} bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "headers_too_large",
        }
    }
)


class LimitedHead(HttpToolsProtocol):
    """Answers 431 to headers that are too long, and closes a connection that does not finish them."""

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0
    _reading = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(MAX_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reading and not self.transport.is_closing():
            self._bytes += len(data)
            if self._bytes > MAX_BYTES:
                head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
                    _TOO_LARGE
                )
                self.transport.write(STATUS_LINE[431] + head + _TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes, self._reading = 0, True
        if self._timer is None:
            self._timer = self.loop.call_later(MAX_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._reading = False
        self._stop_timer()
        super().on_headers_complete()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
