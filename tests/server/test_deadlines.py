"""Requests that take longer than they may: waiting, running, streaming, and bodies that do not come."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.server.conftest import TinyBundle, scripted
from tests.server.process import PATIENCE, ServerProcess, serving, wait_until

LONG = {"model": "travel", "prompt": [300], "max_tokens": 1900}
"""Runs for half a minute, if it is left alone."""


def slow(log: Path, *flags: str) -> AbstractContextManager[ServerProcess]:
    """The demo's server in front of an engine that takes 20 ms for a token, on any machine."""
    return scripted(log, "--seconds 0.02", *flags)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with slow(tmp_path_factory.mktemp("deadlines") / "log", "--max-running", "1") as found:
        yield found


def ask(server: ServerProcess, timeout: float, **more: object) -> object:
    body = {"ignore_eos": True, "timeout": timeout}
    return server.client.completions.create(**(LONG | more), extra_body=body)  # type: ignore[call-overload]


def answers_in_time(server: ServerProcess) -> None:
    """Wait until a short answer is; a busy machine may be late with one."""

    def answered() -> bool:
        with suppress(openai.InternalServerError):
            return bool(server.client.completions.create(model=model, prompt=[10], max_tokens=1).choices)
        return False

    model = server.client.models.list().data[0].id
    wait_until(answered)


def idle(server: ServerProcess) -> None:
    server.wait_for("loraplex_requests_running", 0)
    server.wait_for("loraplex_requests_waiting", 0)


def test_a_request_that_runs_too_long_ends_with_504(server: ServerProcess) -> None:
    before = server.metric("loraplex_requests_total", adapter="travel", finish_reason="timeout")
    with pytest.raises(openai.InternalServerError, match="being answered") as refusal:
        ask(server, 0.5)
    assert refusal.value.status_code == 504
    assert refusal.value.code == "timeout"
    assert refusal.value.response.headers["x-should-retry"] == "false"
    idle(server)
    assert server.metric("loraplex_requests_total", adapter="travel", finish_reason="timeout") == before + 1


def test_a_stream_that_runs_too_long_ends_with_an_error_event(server: ServerProcess) -> None:
    pieces = []
    with pytest.raises(openai.APIError, match="being answered") as error:
        pieces += list(ask(server, 0.5, stream=True))  # type: ignore[call-overload]
    assert error.value.code == "timeout"
    idle(server)


def test_a_request_that_waits_too_long_ends_with_504(server: ServerProcess) -> None:
    running = ask(server, 60, stream=True)
    assert isinstance(running, openai.Stream)
    next(running)
    with pytest.raises(openai.InternalServerError, match="waited for its turn") as refusal:
        ask(server, 0.3, model="tone")
    assert refusal.value.status_code == 504
    server.wait_for("loraplex_requests_waiting", 0)
    running.close()
    idle(server)


def test_a_request_in_time_is_answered_whole(server: ServerProcess) -> None:
    answer = ask(server, 60, max_tokens=3)
    assert answer.usage.completion_tokens == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("timeout", [0, -1, 10**6, "soon"])
def test_a_timeout_that_is_none_is_refused(server: ServerProcess, timeout: object) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(server, timeout)  # type: ignore[arg-type]
    assert refusal.value.param == "timeout"


def test_the_server_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with slow(tmp_path / "log", "--request-timeout", "0.5") as server:
        for timeout in (60, None):
            with pytest.raises(openai.InternalServerError) as refusal:
                ask(server, timeout)  # type: ignore[arg-type]
            assert refusal.value.code == "timeout"
        answers_in_time(server)


def test_a_frozen_engine_keeps_nobody_waiting(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log", "--request-timeout", "1") as server:
        server.engine().suspend()
        with pytest.raises(openai.InternalServerError) as refusal:
            server.client.completions.create(model="small", prompt=[10], max_tokens=1)
        assert refusal.value.status_code == 504
        server.engine().resume()
        answers_in_time(server)


@dataclass(frozen=True)
class Slow:
    """A client that sends `first`, then `piece` every second, until it is answered or cut off."""

    name: str
    first: bytes
    piece: bytes = b""

    def run(self, server: ServerProcess) -> tuple[float, bytes]:
        """Seconds until then, and the answer."""
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=1) as connection:
            connection.sendall(self.first)
            start = time.monotonic()
            while time.monotonic() - start < 200:
                try:
                    answer = connection.recv(4096)
                except TimeoutError:
                    connection.sendall(self.piece)
                except ConnectionError:
                    return time.monotonic() - start, b""
                else:
                    return time.monotonic() - start, answer + _rest(connection)
        raise AssertionError(f"{self.name}: nothing happened")


def _rest(connection: socket.socket) -> bytes:
    """What comes after the first part, until the end."""
    connection.settimeout(PATIENCE)
    found = b""
    with suppress(TimeoutError, ConnectionError):
        while piece := connection.recv(4096):
            found += piece
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_that_do_not_go_on_are_cut_off(server: ServerProcess) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    clients = [
        Slow("a body that stops", head + b"{"),
        Slow("headers that never end", b"GET /health HTTP/1.1\r\nhost: x\r\n", b"x-more: y\r\n"),
        Slow("nothing at all", b""),
        Slow("a body that trickles", head, b" "),
    ]
    with ThreadPoolExecutor() as pool:
        stopped, endless, nothing, trickled = pool.map(lambda client: client.run(server), clients)
    for seconds, answer in (stopped, endless, nothing):
        assert 25 < seconds < 55, "half a minute"
        assert answer == b""
    assert 55 < trickled[0] < 110, "a minute"
    assert trickled[1].startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in trickled[1]
    assert ask(server, 60, max_tokens=1)
