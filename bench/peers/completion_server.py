"""The least of an OpenAI-style server, for libraries that have none: POST /v1/completions, streamed, and GET /health.

Requests wait in the order in which they came. One thread takes them, as many at once as the library batches, and
reports each token; a batch runs until all of its answers have ended. A client that leaves is computed to the end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Protocol

import msgspec
import uvicorn
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

GATHER = 0.02
"""Seconds that the first request of a batch waits for others that came with it."""


class Completion(Struct, frozen=True):
    """The fields of a request that are understood. Answers are greedy, whatever else is asked for."""

    model: str
    prompt: str | list[int]
    max_tokens: Annotated[int, Meta(ge=1)] = 16
    ignore_eos: bool = False


class Job(Struct, frozen=True, eq=False):
    """A request as a library gets it."""

    adapter: str | None
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool
    report: Callable[[int | Exception | None], None]
    """Takes each token as it comes, then None; or what went wrong. For any thread."""


class Library(Protocol):
    """What computes."""

    adapters: list[str]
    most: int
    """Requests that it computes at once."""
    longest: int
    """Tokens of prompt and answer together that it has room for."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token: int) -> str:
        """Some text of a token; never empty, so that a client sees when each token came."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Compute these requests together and report their tokens."""


def serve(library: Library, base: str, port: int) -> None:
    """Serve until SIGTERM."""
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_compute, args=(library, jobs), name="library", daemon=True).start()
    uvicorn.run(application(library, base, jobs), host="127.0.0.1", port=port, log_level="warning")


def application(library: Library, base: str, jobs: SimpleQueue[Job]) -> Starlette:
    async def completions(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=Completion)
        except msgspec.DecodeError as error:
            return _refusal(400, str(error))
        if wanted.model not in (base, *library.adapters):
            return _refusal(404, f"no model {wanted.model!r}")
        prompt = library.encode(wanted.prompt) if isinstance(wanted.prompt, str) else wanted.prompt
        if not prompt or len(prompt) + wanted.max_tokens > library.longest:
            return _refusal(400, f"prompt and max_tokens together must be 2 .. {library.longest} tokens")
        tokens: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        adapter = None if wanted.model == base else wanted.model

        def report(token: int | Exception | None) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        jobs.put(
            Job(
                adapter,
                prompt,
                wanted.max_tokens,
                wanted.ignore_eos,
                report,
            )
        )
        return StreamingResponse(_events(library, wanted, len(prompt), tokens), media_type="text/event-stream")

    async def health(_: Request) -> Response:
        return Response()

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name} for name in (base, *library.adapters)]})

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
    )


async def _events(
    library: Library, wanted: Completion, prompt_tokens: int, tokens: asyncio.Queue[int | Exception | None]
) -> AsyncIterator[bytes]:
    count = 0
    while (token := await tokens.get()) is not None:
        if isinstance(token, Exception):
            yield _event({"error": {"message": str(token), "code": "engine_failed"}})
            return
        count += 1
        finish = "length" if count == wanted.max_tokens else None
        choice = {"index": 0, "text": library.decode(token), "finish_reason": finish}
        yield _event({"object": "text_completion", "model": wanted.model, "choices": [choice]})
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
    yield _event({"object": "text_completion", "model": wanted.model, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def _compute(library: Library, jobs: SimpleQueue[Job]) -> None:
    while True:
        batch = [jobs.get()]
        deadline = time.monotonic() + GATHER
        while len(batch) < library.most:
            try:
                batch.append(jobs.get(timeout=max(0, deadline - time.monotonic())))
            except Empty:
                break
        try:
            library.run(batch)
        except Exception as error:  # the batch's, and no reason to leave those that wait without an answer
            for job in batch:
                job.report(error)
