"""A server of the OpenAI API whose every model misbehaves, or behaves, in a way of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = ("steady", "other", "pairs", "wordy", "no-usage", "refuses", "fails", "cut", "stops", "tells", "babbles")
PROMPT_TOKENS = 7
EVENTS = "text/event-stream"
LOOKS = 3
"""At /metrics, after which the model `awaits-looks` answers."""
PROBES = 3
"""Probes after which the model `awaits-probes` answers."""
DAWDLING_SECONDS = 2.1
"""Before the first token of the model `dawdles`."""


class Cut(Exception):
    """Ends a connection in the middle of an answer."""


@dataclass
class Scripted:
    """What the server was asked, and where it is."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    management: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    """Method, path, body and authorization of each call."""
    flaky: int = 0
    """Answers of the model `flaky` that fail before the first that does not."""
    calls: int = 0
    """Of the management API, after which the model `awaits-calls` answers."""
    answers: int | None = None
    """After so many it takes no other connection, and fails what comes over those that it has."""
    exposition: Callable[[], str] | None = None
    """Makes what /metrics answers; there is none without it."""
    looks: int = 0
    """At /metrics."""
    close: Callable[[], None] = lambda: None
    """Takes no other connection."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def application(scripted: Scripted) -> Starlette:
    async def answer(request: Request) -> Response:
        body = json.loads(await request.body())
        with scripted.lock:
            scripted.bodies.append(body)
            scripted.headers.append(dict(request.headers))
            if len(scripted.bodies) == scripted.answers:
                scripted.close()
            if scripted.answers is not None and len(scripted.bodies) > scripted.answers:
                return PlainTextResponse("it is dying", 500)
        match body["model"]:
            case "refuses":
                error = {"message": "Too many wait", "type": "rate_limit_error", "code": "queue_full"}
                return JSONResponse({"error": error}, 429)
            case "fails":
                return PlainTextResponse("it broke", 500)
            case "unstreamed":
                return JSONResponse({"choices": [{"index": 0, "text": "All at once", "finish_reason": "length"}]})
            case "latin":
                return StreamingResponse(_once(b'data: {"choices": [{"text": "\xff"}]}\n\n'), media_type=EVENTS)
            case "silent":
                return StreamingResponse(_once(b""), media_type=EVENTS)
            case "flaky" if scripted.flaky:
                scripted.flaky -= 1
                return PlainTextResponse("not yet", 503)
            case "awaits-calls":
                await until(lambda: len(scripted.management) >= scripted.calls)
            case "awaits-probes":
                await until(lambda: sum(each.get("prompt") == "Hi" for each in scripted.bodies) >= PROBES)
            case "awaits-looks":
                await until(lambda: scripted.looks >= LOOKS)
            case "tires" if talked(body):
                return PlainTextResponse("no more", 500)
            case "stalls" if talked(body):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
            case "dawdles":
                await asyncio.sleep(DAWDLING_SECONDS)
            case "hangs":
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        return StreamingResponse(_events(body, request.url.path.endswith("chat/completions")), media_type=EVENTS)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "1.2.3", "lane": "scripted", "packages": {"a": "1"}})

    async def metrics(request: Request) -> Response:
        scripted.looks += 1
        if scripted.exposition is None:
            return PlainTextResponse("no such page", 404)
        scripted.headers.append(dict(request.headers))
        return PlainTextResponse(scripted.exposition())

    async def manage(request: Request) -> Response:
        call = (request.method, request.url.path, await request.body(), request.headers.get("authorization", ""))
        scripted.management.append(call)
        unloads = request.method == "DELETE" or "unload" in request.url.path
        if unloads and "absent" in request.url.path + call[2].decode():
            return PlainTextResponse("no such adapter", 404)
        if "refused" in request.url.path:
            return PlainTextResponse("not allowed", 403)
        return JSONResponse({}, 200)

    return Starlette(
        routes=[
            Route("/v1/completions", answer, methods=["POST"]),
            Route("/v1/chat/completions", answer, methods=["POST"]),
            Route("/v1/models", models),
            Route("/version", version),
            Route("/metrics", metrics),
            Route("/v1/adapters/{name}", manage, methods=["PUT", "DELETE"]),
            Route("/v1/load_lora_adapter", manage, methods=["POST"]),
            Route("/v1/unload_lora_adapter", manage, methods=["POST"]),
        ]
    )


def talked(body: dict[str, Any]) -> bool:
    """Whether it is a later turn of a conversation."""
    return any(each["role"] == "assistant" for each in body["messages"])


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _events(body: dict[str, Any], chat: bool) -> AsyncIterator[bytes]:
    model, count = body["model"], body["max_completion_tokens" if chat else "max_tokens"]
    if model == "stops":
        count = min(count, 2)
    if model == "wordless":
        count = 0
    if chat:
        yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    for index in range(count):
        if index == 1:
            match model:
                case "cut":
                    raise Cut
                case "tells":
                    yield event({"error": {"message": "The engine died", "code": "engine_failed"}})
                    break
                case "babbles":
                    yield b"data: {not JSON\n\n"
        if model == "thinks" and not index:
            yield event({"choices": [{"index": 0, "finish_reason": None, "delta": {"reasoning_content": "Hm."}}]})
        yield event({"choices": [piece(f" {index}", chat)]})
        await asyncio.sleep(0)
    if model == "stops":
        return
    yield event({"choices": [piece("", chat) | {"finish_reason": "length"}]})
    if model != "no-usage":
        tokens = {"pairs": 2 * count, "wordy": count // 2}.get(model, count)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
        if model == "remembers":
            usage["prompt_tokens_details"] = {"cached_tokens": PROMPT_TOKENS - 2 if talked(body) else 0}
        yield event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def piece(text: str, chat: bool) -> dict[str, Any]:
    return {"index": 0, "finish_reason": None} | ({"delta": {"content": text}} if chat else {"text": text})


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@contextmanager
def scripted_server() -> Iterator[Scripted]:
    """On a free port of loopback, in a thread of its own."""
    scripted = Scripted()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scripted.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(application(scripted), log_level="critical", lifespan="off"))

        def close() -> None:
            for each in server.servers:
                each.close()

        scripted.close = close
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive(), "the scripted server did not start"
                assert time.monotonic() < deadline, "the scripted server did not start within 60 s"
                time.sleep(0.01)
            yield scripted
        finally:
            server.should_exit = True
            thread.join()
