"""Pages of other sites: what a browser is told about who may ask this server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving

PAGE = "https://chat.example.com"
BODY = {"model": "small", "prompt": [5, 6, 7], "max_tokens": 4}


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("origins") / "log"
    with serving(tiny.folder, log, "--allowed-origins", PAGE, "http://localhost:5173") as found:
        yield found


def preflight(server: ServerProcess, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return httpx.options(f"{server.url}/v1/chat/completions", headers=headers)


def test_a_page_that_is_named_may_ask(server: ServerProcess) -> None:
    for origin in (PAGE, "http://localhost:5173"):
        told = preflight(server, origin)
        assert told.status_code == 200
        assert told.headers["access-control-allow-origin"] == origin
        assert "POST" in told.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in told.headers["access-control-allow-headers"]


def test_another_page_may_not(server: ServerProcess) -> None:
    told = preflight(server, "https://elsewhere.example.com")
    assert told.status_code == 400
    assert "access-control-allow-origin" not in told.headers
    answer = httpx.get(f"{server.url}/v1/models", headers={"origin": "https://elsewhere.example.com"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_reads_answers_and_their_headers(server: ServerProcess, stream: bool) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", headers={"origin": PAGE}, json=BODY | {"stream": stream})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-expose-headers"] == "*"
    assert answer.text.endswith("data: [DONE]\n\n") is stream


def test_a_page_reads_refusals(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", headers={"origin": PAGE}, json=BODY | {"model": "nobody"})
    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.json()["error"]["code"] == "model_not_found"


def test_without_the_setting_no_page_may_ask(tiny_server: ServerProcess) -> None:
    assert "access-control-allow-origin" not in preflight(tiny_server, PAGE).headers
