"""Clients that leave, an engine that dies, a server that is told to stop."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import ServerProcess, command, serving
from tests.server.test_adapters import call

LONG = 200
"""Tokens of an answer that is still running when something happens to it."""


def stream(server: ServerProcess, *, n: int = 1, ignore_eos: bool = False) -> openai.Stream[openai.types.Completion]:
    return server.client.completions.create(
        model="large",
        prompt=[10, 20],
        temperature=1,
        seed=1,
        max_tokens=LONG,
        stream=True,
        n=n,
        extra_body={"ignore_eos": ignore_eos},
    )


@pytest.fixture
def own_server(tiny: TinyBundle, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of its own for tests that break it."""
    with serving(tiny.folder, tmp_path / "log") as server:
        yield server


def test_a_client_that_leaves_cancels_its_generation(demo_server: ServerProcess) -> None:
    labels = {"adapter": "travel", "finish_reason": "cancelled"}
    before = demo_server.metric("loraplex_requests_total", **labels)
    answers = [
        demo_server.client.completions.create(
            model="travel", prompt=[5], seed=seed, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
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
    requests = [
        asyncio.create_task(client.completions.create(model="travel", prompt=[5], n=64, max_tokens=1500, temperature=2))
        for _ in range(2)
    ]
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
            assert answer.result(30) == expected


def test_an_engine_that_dies_while_it_starts_is_started_again(own_server: ServerProcess) -> None:
    first = own_server.engine()
    first.kill()
    deadline = time.monotonic() + 30
    while (second := own_server.engines()) in ([], [first]) and time.monotonic() < deadline:
        time.sleep(0.002)
    second[0].kill()
    own_server.client.completions.create(model="large", prompt=[10], temperature=0)
    assert own_server.engine() not in (first, second[0])


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs Linux")
def test_an_engine_that_the_system_cannot_start_is_tried_again(own_server: ServerProcess) -> None:
    server = psutil.Process(own_server.process.pid)
    limit = server.rlimit(psutil.RLIMIT_NOFILE)
    server.rlimit(psutil.RLIMIT_NOFILE, (3, limit[1]))
    own_server.engine().kill()
    deadline = time.monotonic() + 30
    while "could not be started again" not in own_server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    server.rlimit(psutil.RLIMIT_NOFILE, limit)
    assert own_server.client.completions.create(model="large", prompt=[10], max_tokens=2).choices
    assert own_server.get("/ready")[0] == 200


def test_a_request_that_kills_two_engines_is_not_given_to_a_third(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log", "--prefill-chunk", "1") as server, ThreadPoolExecutor() as pool:
        # Far from its first token for seconds.
        ask = pool.submit(server.client.completions.create, model="travel", prompt=[5] * 2000, max_tokens=1)
        for _ in range(2):
            server.wait_for("loraplex_requests_running", 1, adapter="travel")
            deadline = time.monotonic() + 30
            while server.get("/ready")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not ask.done()
            server.engine().kill()
            while server.get("/ready")[0] == 200 and not ask.done() and time.monotonic() < deadline:
                time.sleep(0.01)
        with pytest.raises(openai.InternalServerError, match="engine process died"):
            ask.result(60)


def test_health_and_ready_say_what_the_engine_does(own_server: ServerProcess) -> None:
    assert own_server.get("/ready") == (200, {"ready": True, "engine": "ready"})
    own_server.engine().kill()
    seen = set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, body = own_server.get("/ready")
        seen.add((status, body["engine"]))
        assert own_server.get("/health")[0] == 200
        if seen >= {(503, "restarting"), (200, "ready")} and status == 200:
            return
    raise AssertionError(seen)


def test_an_engine_that_keeps_dying_is_given_up(own_server: ServerProcess) -> None:
    for _ in range(6):
        own_server.engine().kill()
        deadline = time.monotonic() + 30
        while own_server.get("/health")[1]["engine"] == "ready" and time.monotonic() < deadline:
            time.sleep(0.02)
        while own_server.get("/health")[1]["engine"] == "restarting" and time.monotonic() < deadline:
            time.sleep(0.05)
    assert own_server.get("/health")[0] == 503
    with pytest.raises(openai.InternalServerError) as refusal:
        own_server.client.completions.create(model="large", prompt=[10])
    assert refusal.value.status_code == 503


def test_the_engine_dies_with_the_server(own_server: ServerProcess) -> None:
    answer = iter(stream(own_server))
    next(answer)
    engine = own_server.engine()
    own_server.process.kill()
    own_server.process.wait()
    assert psutil.wait_procs([engine], timeout=10)[1] == []


def test_sigterm_lets_running_streams_finish(own_server: ServerProcess) -> None:
    answer = stream(own_server)
    pieces = iter(answer)
    first = next(pieces)
    own_server.process.send_signal(signal.SIGTERM)
    chunks = [first, *pieces]
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert own_server.process.wait(30) == 0


@pytest.mark.parametrize("streaming", [True, False])
def test_past_the_drain_requests_end_with_an_error(tiny: TinyBundle, tmp_path: Path, streaming: bool) -> None:
    log = tmp_path / "log"
    with serving(tiny.folder, log, "--drain-timeout", "1", "--max-running", "1") as server:

        def ask() -> list[object]:
            answer = server.client.completions.create(
                model="large", prompt=[10], temperature=1, max_tokens=LONG, stream=streaming
            )
            return list(answer)

        with ThreadPoolExecutor() as pool:
            server.engine().suspend()
            running, waiting = pool.submit(ask), pool.submit(ask)
            server.wait_for("loraplex_requests_running", 1, adapter="large")
            server.wait_for("loraplex_requests_waiting", 1, adapter="large")
            server.process.send_signal(signal.SIGTERM)
            for answer in (running, waiting):
                with pytest.raises(openai.APIError, match="shutting down") as error:
                    answer.result(20)
                if not streaming:
                    assert isinstance(error.value, openai.InternalServerError)
                    assert error.value.status_code == 503
        server.engine().resume()
        assert server.process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_past_the_drain_an_adapter_is_not_loaded(tiny: TinyBundle, tmp_path: Path) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    flags = ("--dev", "--adapter-dir", str(tmp_path), "--state-dir", str(state), "--drain-timeout", "1")
    with serving(tiny.folder, log, *flags) as server, ThreadPoolExecutor() as pool:
        shutil.copytree(tiny.adapters["small"], tmp_path / "given" / "peft")
        answer = pool.submit(call, server, "PUT", "/v1/adapters/new", {"path": "given/peft"})
        converter = None
        while converter is None and not answer.done():
            children = psutil.Process(server.process.pid).children()
            converter = next((child for child in children if "convert" in child.cmdline()), None)
        assert converter is not None
        converter.suspend()
        server.process.send_signal(signal.SIGTERM)
        status, body = answer.result(20)
        assert (status, body["error"]["code"]) == (503, "not_ready")
        assert server.process.wait(20) == 0
        assert psutil.wait_procs([converter], timeout=10)[1] == []
    assert [each.name for each in state.iterdir()] == ["adapters.json"]
    assert "Traceback" not in log.read_text()


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
            server.wait_for("loraplex_requests_running", 1, adapter="travel")
            server.client.completions.create(model="tone", prompt=[5], max_tokens=1)
            assert "cut off" not in (tmp_path / "log").read_text()
            assert server.metric("loraplex_requests_total", adapter="travel", finish_reason="length") == 1
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += reader.recv(2**20)
        assert received.count(b'"top_logprobs"') == 1900
        assert b"data: [DONE]" in received


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log") as server:
        client = server.client
        answer = iter(
            client.completions.create(
                model="travel", prompt=[5], n=16, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
            )
        )
        next(answer)
        engine = server.engine()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert psutil.wait_procs([engine], timeout=10)[1] == []


def test_a_taken_port_is_said_at_once(tiny: TinyBundle, tiny_server: ServerProcess) -> None:
    port = tiny_server.url.rpartition(":")[2]
    result = subprocess.run([*command(tiny.folder)[:-1], port], capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"loraplex: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [f"loraplex: {tmp_path} is not a bundle: it has no bundle.json"]
