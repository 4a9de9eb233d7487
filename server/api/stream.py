"""Answers as they leave: one JSON body, or server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from loraplex.server.api.schema import ErrorBody, ErrorResponse
from loraplex.server.errors import Internal, LoraplexError
from loraplex.server.outlet import LARGEST_PIECE, EventWriter, Outlet, Writes

DONE = b"data: [DONE]\n\n"
PING_SECONDS = 15
SLOW_READER_SECONDS = 30
"""A client that takes nothing for so long is cut off: what it does not read stays in memory."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; only logs ever see it."""

logger = logging.getLogger("loraplex")
_encoder = msgspec.json.Encoder()
T = TypeVar("T")


class Write(Protocol):
    """Sends whole events, or none; those after which `more` follow at once may leave together with them."""

    def __call__(self, events: bytes, more: bool = False) -> None: ...


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(content), status, headers, "application/json")


def error_response(error: LoraplexError) -> Response:
    """An error in OpenAI's shape."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.permanent:
        headers["x-should-retry"] = "false"  # OpenAI's clients obey it
    return json_response(error_body(error), error.status, headers)


def error_body(error: LoraplexError) -> ErrorResponse:
    return ErrorResponse(ErrorBody(error.message, error.type, error.param, error.code))


INTERNAL_ERROR = error_body(Internal("The server failed on this request; its log says why"))


def event(chunk: object, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + _encoder.encode(chunk) + b"\n\n"


class EventStream(EventSourceResponse):
    """A streamed answer: what `tell` writes, and `end`. An error becomes the event `failed`, since the status is out.

    `finish` is called however it ends, even before it began.

    While the client keeps up, events leave where they are written: the way through a generator, a task and ASGI costs
    more than making them. What the client is not ready for goes that way, where its patience is measured.
    """

    def __init__(
        self,
        tell: Callable[[Write], Coroutine[Any, Any, None]],
        failed: Callable[[ErrorResponse], bytes],
        end: bytes,
        writes: Writes,
        finish: Callable[[], None],
    ) -> None:
        super().__init__(self._leftovers())
        self._tell = tell
        self._failed = failed
        self._end = end
        self._writer = EventWriter(writes)
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._told = False
        self._sending: float | None = None
        """Since when something is being sent, by the event loop's clock."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Two tasks besides this one. sse-starlette's task group has one for each thing to wait for, which costs a
        # quarter of a request.
        outlet = self._writer.outlet = Outlet.of(scope)
        telling = asyncio.create_task(self._tell_all())
        telling.add_done_callback(self._all_told)
        leaving = asyncio.create_task(_disconnected(receive))
        leaving.add_done_callback(lambda _: telling.cancel())
        self._ping_later()
        try:
            async with asyncio.timeout(None) as patience:
                self._watch(patience)
                await self._stream_response(partial(self._send, send))
        except TimeoutError:
            logger.warning("a client has not read its stream for %d s: cut off", SLOW_READER_SECONDS)
            if outlet:
                outlet.cut()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            telling.cancel()
            leaving.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)
            self._finish()

    async def _tell_all(self) -> None:
        write = self._writer.write
        try:
            await self._tell(write)
        except LoraplexError as error:
            write(self._failed(error_body(error)))
        except Exception:
            logger.exception("a stream failed")
            write(self._failed(INTERNAL_ERROR))
        write(self._end)

    def _all_told(self, _: asyncio.Task[None]) -> None:
        """Also where the client left before the first word."""
        self._told = True
        self._writer.news.set()

    async def _leftovers(self) -> AsyncGenerator[bytes, None]:
        """What was left, in pieces as large as a slow reader is still seen to read; lasts until all is told."""
        writer = self._writer
        while writer.left or not self._told:
            if writer.left:
                size, piece = 0, []
                while writer.left and size < LARGEST_PIECE:
                    piece.append(writer.left.popleft())
                    size += len(piece[-1])
                yield b"".join(piece)
            else:
                writer.direct = True
                writer.news.clear()
                await writer.news.wait()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        # sse-starlette's timer for each event takes longer than all else that it needs, and head and end have none.
        await send(message)

    def _ping_later(self) -> None:
        self._timers["ping"] = self._loop.call_later(PING_SECONDS, self._write_ping)

    def _write_ping(self) -> None:
        """A comment, so that no proxy takes a connection for idle."""
        if not self._told:
            self._writer.write(ServerSentEvent(comment=f"ping - {datetime.now(UTC)}").encode())
            self._ping_later()

    async def _send(self, send: Send, message: Message) -> None:
        """Send a message, from head to end, while `_watch` looks on."""
        self._sending = self._loop.time()
        await send(message)
        self._sending = None

    def _watch(self, patience: asyncio.Timeout) -> None:
        """End `patience` once something has been sent for too long."""
        now = self._loop.time()
        end = (now if self._sending is None else self._sending) + SLOW_READER_SECONDS
        if end <= now:
            patience.reschedule(now)
        else:
            self._timers["patience"] = self._loop.call_at(end, self._watch, patience)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. It is stopped as soon as the client goes away, which raises ClientDisconnect.

    The body must have been read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all; the first error ends all."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
