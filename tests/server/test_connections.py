"""Connections: as many as there may be, and those that break off."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from loraplex.server.settings import RESERVED_FILES, Settings
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import PATIENCE, ServerProcess, serving, wait_until

MOST = 8
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@pytest.fixture
def server(tiny: TinyBundle, tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tiny.folder, tmp_path / "log", "--max-connections", str(MOST)) as found:
        yield found
    assert "Traceback" not in (tmp_path / "log").read_text()


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    connection.settimeout(PATIENCE)
    return connection


def health(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        if not (piece := connection.recv(65536)):
            break
        answer += piece
    return answer


def test_one_connection_too_many_is_answered_503_and_closed(server: ServerProcess) -> None:
    begun = time.monotonic()
    with ExitStack() as open_ones:
        connections = [open_ones.enter_context(connect(server)) for _ in range(MOST)]
        assert all(health(connection).startswith(b"HTTP/1.1 200") for connection in connections)
        for _ in range(2 * MOST):  # each is closed, so that there is room for the next
            with connect(server) as one_more:
                answer = health(one_more)
                assert answer.startswith(b"HTTP/1.1 503")
                assert b"retry-after: 1\r\n" in answer
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
                assert one_more.recv(1) == b""
        with connect(server) as silent:  # says nothing, and is not kept
            assert silent.recv(1) == b""
        assert all(health(connection).startswith(b"HTTP/1.1 200") for connection in connections)
    wait_until(lambda: server.get("/health")[0] == 200)
    server.stop()
    # Once a second, however many there are, but none of them is left out.
    counts = [int(count) for count in re.findall(r"connections are open: (\d+) refused", server.log.read_text())]
    assert sum(counts) >= 2 * MOST + 1
    assert len(counts) <= time.monotonic() - begun + 1


def test_by_default_the_limit_of_open_files_is_the_limit() -> None:
    files, _ = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    assert Settings().connection_limit() == (None if files == psutil.RLIM_INFINITY else files - RESERVED_FILES)
    assert Settings(max_connections=7).connection_limit() == 7


def test_clients_that_leave_while_they_send_are_no_failure(server: ServerProcess) -> None:
    for path in (b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/tokenize"):
        for sent in (b"", b'{"model": "sm'):
            with connect(server) as leaving:
                leaving.sendall((REQUEST % 1000).replace(b"/v1/completions", path) + sent)
                time.sleep(0.05)
    wait_until(lambda: server.log.read_text().count(" 499 ") >= 8, server.log.read_text)
    assert server.metric("loraplex_requests_total", finish_reason="error") == 0


def test_clients_that_leave_with_another_request_sent_end_the_one_that_is_answered(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log") as server:
        fields = {"model": "plex", "prompt": [5], "n": 16, "max_tokens": 1900, "ignore_eos": True, "stream": True}
        body = json.dumps(fields).encode()
        for _ in range(3):
            with connect(server) as leaving:
                leaving.sendall((REQUEST % len(body) + body) * 2)
                assert leaving.recv(4096).startswith(b"HTTP/1.1 200")
                # Gone at once: while the second request waits, nothing is read from the connection.
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_for("loraplex_requests_total", 3 * 16, finish_reason="cancelled")
        assert server.metric("loraplex_requests_total") == 3 * 16
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_an_offer_to_speak_another_protocol_is_passed_over(server: ServerProcess) -> None:
    """Java's client makes one with every request that is not encrypted, and sends its body all the same."""
    body = json.dumps({"model": "small", "prompt": [10], "max_tokens": 1}).encode()
    offer = b"connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    head = REQUEST[: REQUEST.index(b"content-length")] + offer
    requests = [
        head + b"content-length: %d\r\n\r\n" % len(body) + body,
        head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
    ]
    with connect(server) as connection:
        for each in (*requests, *requests):  # on one connection
            connection.sendall(each)
            answer = b""
            while not answer.endswith(b"}"):
                piece = connection.recv(65536)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200"), answer
        assert health(connection).startswith(b"HTTP/1.1 200")


def test_bodies_and_headers_that_never_end_are_refused(server: ServerProcess) -> None:
    cases = {
        b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 20_000: b"431",
        b"GET /" + b"a" * 100_000: b"431",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000: b"431",
        b"NONSENSE\r\n\r\n": b"400",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n": b"400",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n": b"400",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n": b"400",
    }
    for raw, status in cases.items():
        with connect(server) as connection:
            with suppress(ConnectionError):  # where it is refused before all of it is sent
                connection.sendall(raw)
            answer = connection.recv(4096)
            assert answer.split(b" ", 2)[1] == status, (raw[:60], answer[:200])
    assert server.get("/health")[0] == 200
