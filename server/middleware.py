"""Pure ASGI middleware: every request has an id, which the answer carries, a record, a log line and a trace.

And an answer, where it is cancelled before it has begun one: by a server that stops and does not wait any longer.
"""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraplex.server.api.stream import error_response
from loraplex.server.errors import NotReady
from loraplex.server.logs import log_request
from loraplex.server.record import RequestRecord, enter
from loraplex.server.tracing import Tracing

HEADER = "x-request-id"
LONGEST_PATH = 200
_ACCEPTED = re.compile(r"[\x21-\x7e]{1,128}")


class Recorded:
    """Echoes the client's x-request-id if it is printable and short, makes one otherwise."""

    def __init__(self, app: ASGIApp, tracing: Tracing | None) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        record = RequestRecord(
            id=given if _ACCEPTED.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"],
            # As it came, so that nobody writes lines of their own into the log; the query may hold a key.
            path=scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:LONGEST_PATH],
            traceparent={name: headers[name] for name in ("traceparent", "tracestate") if name in headers},
        )
        enter(record)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[HEADER] = record.id
                if record.rate:
                    answer.update(record.rate.headers())
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if record.status:
                raise
            stopping = NotReady("the server is shutting down", retry_after=1)
            await error_response(stopping)(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", None)
            log_request(record)
            if self._tracing and route and route.startswith("/v1/"):
                self._tracing.export(record, route)
