"""Answers as they leave: one JSON body, or server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from loraplex.server.api.schema import ErrorBody, ErrorResponse
from loraplex.server.errors import Internal, LoraplexError
from loraplex.server.generation import Delta

DONE = b"data: [DONE]\n\n"
PING_SECONDS = 15
SLOW_READER_SECONDS = 30
"""A client that takes nothing for so long is cut off: what it does not read stays in memory."""
LARGEST_PIECE = 64 * 1024
"""Bytes of events from which on they are not kept for others."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; only logs ever see it."""

logger = logging.getLogger("loraplex")
_encoder = msgspec.json.Encoder()
T = TypeVar("T")


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
    """A streamed answer. `finish` is called however it ends, even before it began.

    From the signal that stops the server it has `stop_timeout` seconds.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], finish: Callable[[], None], stop_timeout: float) -> None:
        super().__init__(
            events, ping=PING_SECONDS, shutdown_grace_period=stop_timeout, send_timeout=SLOW_READER_SECONDS
        )
        self._events = events
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._sending: float | None = None
        """Since when something is being sent, by the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as patience:
                self._watch(patience)
                await super().__call__(scope, receive, send)
        except (SendTimeoutError, TimeoutError):
            logger.warning("a client has not read its stream for %d s: cut off", SLOW_READER_SECONDS)
        finally:
            if self._timer:
                self._timer.cancel()
            await self._events.aclose()  # or its work would be cancelled some time later
            self._finish()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """As sse-starlette's, whose timer for each event takes longer than all else that the event needs."""
        if self._sending is not None:  # the other of events and pings waits, and is watched
            await send(message)
            return
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
            self._timer = self._loop.call_at(end, self._watch, patience)


async def events(
    chunks: AsyncGenerator[bytes, None],
    more: Callable[[], bool],
    failed: Callable[[ErrorResponse], bytes],
    end: bytes,
) -> AsyncGenerator[bytes, None]:
    """Chunks with the end that clients expect; an error becomes the event `failed`, since the status is out already.

    While `more` says that the next is there already, chunks are kept, to leave in one piece: sending costs more than
    all that is done for a chunk before. So a delta that says nothing must come as an empty chunk, or what was kept for
    it would wait for the one after it.
    """
    held = b""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                held += chunk
                if not held or (len(held) < LARGEST_PIECE and more()):
                    continue
                piece, held = held, b""
                yield piece
    except LoraplexError as error:
        held += failed(error_body(error))
    except Exception:
        logger.exception("a stream failed")
        held += failed(INTERNAL_ERROR)
    if held or end:
        yield held + end


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. It is stopped as soon as the client goes away, which raises ClientDisconnect.

    The body must have been read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def merge(choices: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of several choices as they come, each with its index. The first error ends all."""
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def pump(index: int, choice: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(choice):
                async for delta in choice:
                    arrived.put_nowait((index, delta))
            arrived.put_nowait((index, None))
        except Exception as error:
            arrived.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, choice)) for index, choice in enumerate(choices)]
    try:
        running = len(tasks)
        while running:
            index, item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
