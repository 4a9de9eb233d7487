"""Clients that leave, an engine that dies, a server that cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai.types.responses import Response

from tests.server.calls import stream
from tests.server.conftest import DEMO, TinyBundle, scripted
from tests.server.process import PATIENCE, ServerProcess, command, serving, wait_until
from tests.server.responses import OPEN_RESPONSES
from tests.server.strictness import validated
from tests.server.test_watchdog import STUCK_STEP, behaving, gated, server_child

RAISES_ITS_LIMIT = """
import logging, resource

limit = resource.getrlimit(resource.RLIMIT_NOFILE)

class Handler(logging.Handler):
    def emit(self, record):
        if "could not be started again" in record.getMessage():
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)

logging.getLogger("loraplex.engine").addHandler(Handler())
"""
"""A server that may open files again once it has told that it could not."""


def test_a_client_that_leaves_cancels_its_generation(demo_server: ServerProcess) -> None:
    labels = {"adapter": "travel", "finish_reason": "cancelled"}
    before = demo_server.metric("loraplex_requests_total", **labels)
    answers = [
        demo_server.client.completions.create(
            model="travel", prompt=[5], seed=seed, max_tokens=1500, n=32, stream=True, extra_body={"ignore_eos": True}
        )
        for seed in range(4)
    ]
    for answer in answers:
        next(iter(answer))
        answer.close()
    demo_server.wait_for("loraplex_requests_running", 0, adapter="travel")
    assert demo_server.metric("loraplex_requests_total", **labels) > before


async def test_a_client_that_leaves_a_whole_answer_cancels_it(demo_server: ServerProcess) -> None:
    labels = {"adapter": "travel", "finish_reason": "cancelled"}
    before = demo_server.metric("loraplex_requests_total", **labels)
    client = demo_server.async_client
    asked = {"model": "travel", "prompt": [5], "n": 64, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    requests = [asyncio.create_task(client.completions.create(**asked)) for _ in range(2)]  # type: ignore[call-overload]
    await asyncio.to_thread(demo_server.wait_for, "loraplex_requests_running", 16, adapter="travel")
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    await client.close()
    demo_server.wait_for("loraplex_requests_running", 0, adapter="travel")
    demo_server.wait_for("loraplex_requests_waiting", 0, adapter="travel")
    assert demo_server.metric("loraplex_requests_total", **labels) > before


def test_an_engine_that_dies_is_replaced(own_server: ServerProcess) -> None:
    expected = own_server.client.completions.create(model="large", prompt=[10], temperature=0).choices[0].text
    engine = own_server.engine()
    answer = iter(stream(own_server, n=128, ignore_eos=True))  # seconds of work: not over before the engine is
    next(answer)
    engine.kill()
    with pytest.raises(openai.APIError, match="engine process died"):
        list(answer)
    again = own_server.client.completions.create(model="large", prompt=[10], temperature=0).choices[0].text
    assert again == expected
    assert own_server.engine().pid != engine.pid
    assert own_server.get("/health")[0] == 200
    assert own_server.metric("loraplex_engine_restarts_total") == 1


def test_a_request_to_an_engine_that_has_just_died_is_answered_by_the_next(own_server: ServerProcess) -> None:
    def ask() -> str:
        return own_server.client.completions.create(model="large", prompt=[10], temperature=0).choices[0].text

    expected = ask()
    for _ in range(3):
        engine = own_server.engine()
        engine.suspend()
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(ask)
            own_server.wait_for("loraplex_requests_running", 1, adapter="large")
            engine.kill()
            assert answer.result(PATIENCE) == expected


def test_an_engine_that_dies_while_it_starts_is_started_again(own_server: ServerProcess) -> None:
    first = own_server.engine()
    first.kill()
    wait_until(lambda: own_server.engines() not in ([], [first]))
    second = own_server.engine()
    second.kill()
    own_server.client.completions.create(model="large", prompt=[10], temperature=0)
    assert own_server.engine() not in (first, second)


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs Linux")
def test_an_engine_that_the_system_cannot_start_is_tried_again(tmp_path: Path) -> None:
    engine, gate = gated(tmp_path)
    gate.touch()
    with behaving(engine, tmp_path / "log", timeout=0, first=RAISES_ITS_LIMIT) as server:
        process = psutil.Process(server.process.pid)
        process.rlimit(psutil.RLIMIT_NOFILE, (3, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
        os.kill(server_child(server), signal.SIGKILL)
        server.wait_for_line("could not be started again")
        assert server.client.completions.create(model="travel", prompt=[10], max_tokens=2).choices
        assert server.get("/ready")[0] == 200


def test_a_request_that_kills_two_engines_is_not_given_to_a_third(tmp_path: Path) -> None:
    with behaving(STUCK_STEP, tmp_path / "log", timeout=0) as server, ThreadPoolExecutor() as pool:
        ask = pool.submit(server.client.completions.create, model="travel", prompt=[5], max_tokens=13)
        for restarts in range(2):
            server.wait_for("loraplex_requests_running", 1, adapter="travel")
            server.wait_for("loraplex_engine_restarts_total", restarts)
            assert not ask.done()
            os.kill(server_child(server), signal.SIGKILL)
        with pytest.raises(openai.InternalServerError, match="engine process died"):
            ask.result(PATIENCE)


def test_health_and_ready_say_what_the_engine_does(tmp_path: Path) -> None:
    engine, gate = gated(tmp_path)
    with behaving(engine, tmp_path / "log", timeout=0) as server:
        assert server.get("/ready") == (200, {"ready": True, "engine": "ready"})
        os.kill(server_child(server), signal.SIGKILL)
        wait_until(lambda: server.get("/ready") == (503, {"ready": False, "engine": "restarting"}))
        assert server.get("/health")[0] == 200
        gate.touch()
        wait_until(lambda: server.get("/ready") == (200, {"ready": True, "engine": "ready"}))
        assert server.get("/health")[0] == 200


def test_an_engine_that_dies_fails_the_response(tmp_path: Path) -> None:
    """Half a minute before the end of the answer."""
    with scripted(tmp_path / "log", "--seconds 0.02", "--max-running", "64") as server:
        raw = server.client.responses.with_raw_response.create(
            model="travel", input="What should I see in Paris?", max_output_tokens=1500, stream=True
        )
        lines = (json.loads(line.removeprefix("data: ")) for line in raw.http_response.iter_lines() if "data:" in line)
        events: list[dict[str, Any]] = []
        for event in lines:
            events.append(event)
            if len(events) == 8:
                os.kill(server_child(server), signal.SIGKILL)
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["sequence_number"] == len(events) - 1
    failed = validated(Response, last["response"], known=OPEN_RESPONSES)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "server_error"
    assert failed.output_text == "".join(
        each["delta"] for each in events if each["type"] == "response.output_text.delta"
    )


def test_an_engine_that_keeps_dying_is_given_up(own_server: ServerProcess) -> None:
    for restarts in range(6):
        own_server.wait_for("loraplex_engine_restarts_total", restarts)
        own_server.engine().kill()
    wait_until(lambda: own_server.get("/health")[0] == 503)
    with pytest.raises(openai.InternalServerError) as refusal:
        own_server.client.completions.create(model="large", prompt=[10])
    assert refusal.value.status_code == 503


def test_the_engine_dies_with_the_server(own_server: ServerProcess) -> None:
    answer = iter(stream(own_server))
    next(answer)
    engine = own_server.engine()
    own_server.process.kill()
    own_server.process.wait()
    assert psutil.wait_procs([engine], timeout=PATIENCE)[1] == []


def test_a_slow_reader_keeps_no_slot(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log", "--max-running", "1") as server:
        body = {"model": "travel", "messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True}
        body |= {"max_tokens": 1900, "logprobs": True, "top_logprobs": 20}  # more than sockets' buffers hold
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            content = json.dumps(body).encode()
            reader.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content
            )
            wait_until(lambda: server.metric("loraplex_prompt_tokens_total", adapter="travel"))  # it is the first
            server.client.completions.create(model="tone", prompt=[5], max_tokens=1)
            assert "cut off" not in (tmp_path / "log").read_text()
            server.wait_for("loraplex_requests_total", 1, adapter="travel", finish_reason="length")
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += reader.recv(2**20)
        assert received.count(b'"top_logprobs"') == 1900
        assert b"data: [DONE]" in received


def test_a_taken_port_is_said_at_once(tiny: TinyBundle, tiny_server: ServerProcess) -> None:
    port = tiny_server.url.rpartition(":")[2]
    result = subprocess.run([*command(tiny.folder)[:-1], port], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"loraplex: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [f"loraplex: {tmp_path} is not a bundle: it has no bundle.json"]
