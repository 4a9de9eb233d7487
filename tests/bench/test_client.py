"""The client against a server whose every step is known."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loraplex.bench.load.client import opened
from loraplex.bench.load.driver import Tally, drive
from loraplex.bench.load.workload import Planned
from loraplex.bench.results.result import Request as Result
from tests.bench.scripted_server import PROMPT_TOKENS, Scripted, event, piece

TOKENS = 6


async def test_times_are_those_of_the_tokens() -> None:
    """The server sends a token only after the client has noted the one before, and writes down when."""
    noted = asyncio.Semaphore(0)
    sent: list[float] = []

    async def events() -> AsyncIterator[bytes]:
        for index in range(TOKENS):
            sent.append(time.perf_counter())
            yield event({"choices": [piece(f" {index}", chat=False)]})
            await noted.acquire()
        sent.append(time.perf_counter())
        yield event({"choices": [piece("", chat=False) | {"finish_reason": "length"}]})
        yield b"data: [DONE]\n\n"

    async def answer(_: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        task = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/completions"
        try:
            async with opened(url, {}, 60, insecure=False) as client:
                began = time.perf_counter()
                request = await client.ask("a", b"{}", began, lambda _: noted.release())
                ended = time.perf_counter()
        finally:
            server.should_exit = True
            await task
    assert request.error_kind is None
    assert len(request.itls) == TOKENS - 1
    came = [began + request.start + request.ttft + sum(request.itls[:index]) for index in range(TOKENS)]
    for index, moment in enumerate(came):
        # Each between its own sending and the next one's; rounding of sums aside.
        assert sent[index] - 1e-6 <= moment <= sent[index + 1] + 1e-6
    assert sent[TOKENS] - 1e-6 <= began + request.start + request.latency <= ended


async def ask(url: str, model: str, *, chat: bool = False, tokens: int = 4, limit: float = 60) -> Result:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    length = "max_completion_tokens" if chat else "max_tokens"
    body = json.dumps({"model": model, length: tokens, "prompt": "x", "stream": True}).encode()
    async with opened(url + path, {}, limit, insecure=False) as client:
        return await client.ask(model, body, time.perf_counter())


@pytest.mark.parametrize("chat", [False, True])
async def test_an_answer_has_its_text_tokens_and_times(scripted: Scripted, chat: bool) -> None:
    request = await ask(scripted.url, "steady", chat=chat)
    assert request.error_kind is None
    assert (request.text, request.finish_reason) == (" 0 1 2 3", "length")
    assert (request.input_tokens, request.output_tokens, request.usage_tokens) == (PROMPT_TOKENS, 4, 4)
    assert len(request.itls) == 3
    assert 0 < request.ttft <= request.ttft + sum(request.itls) <= request.latency + 1e-9


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("refuses", "http_429:queue_full", "Too many wait"),
        ("fails", "http_500", "it broke"),
        ("cut", "broken_stream", ""),
        ("stops", "broken_stream", "ended before"),
        ("babbles", "broken_stream", "not what the API says"),
        ("tells", "stream:engine_failed", "The engine died"),
    ],
)
async def test_errors_have_kinds(scripted: Scripted, model: str, kind: str, message: str) -> None:
    request = await ask(scripted.url, model)
    assert request.error_kind == kind
    assert message in request.error


async def test_an_answer_that_does_not_come_is_a_timeout(scripted: Scripted) -> None:
    assert (await ask(scripted.url, "hangs", limit=0.2)).error_kind == "timeout"


async def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert (await ask(url, "steady")).error_kind == "connection"


async def test_an_answer_without_tokens_says_so(scripted: Scripted) -> None:
    request = await ask(scripted.url, "no-usage", tokens=0)
    assert (request.error_kind, request.text, request.itls) == (None, "", [])
    assert request.ttft == request.latency > 0


async def test_no_more_requests_run_than_wanted_and_the_others_queue(scripted: Scripted) -> None:
    body = json.dumps({"model": "steady", "max_tokens": 20, "prompt": "x"}).encode()
    plan = [Planned(at=0.0, model="steady", body=body, input_tokens=3) for _ in range(9)]
    tally = Tally()
    async with opened(f"{scripted.url}/v1/completions", {}, 60, insecure=False) as client:
        measured = await drive(client, plan, 3, tally)
    assert (tally.done, tally.failed, tally.running, tally.chunks, tally.total) == (9, 0, 0, 180, 9)
    spans = sorted((each.start, each.start + each.latency) for each in measured.requests)
    assert _most_at_once(spans) <= 3
    assert measured.requests[0].queue < measured.requests[-1].queue
    assert measured.duration >= max(end for _, end in spans)
    assert measured.cost.chunks == 180
    assert measured.cost.cpu_seconds > 0


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most
