"""Requests that name no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraplex.server.keys import Key, digest, new_key
from tests.server.calls import call
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving
from tests.server.test_keys import write

ALL, LARGE = new_key(), new_key()
CHAT = {"messages": [{"role": "user", "content": "w10"}], "max_tokens": 4, "temperature": 0}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "w10 w50", "max_tokens": 4, "temperature": 0},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "w10", "max_output_tokens": 4, "temperature": 0},
    "/v1/responses/input_tokens": {"input": "w10"},
}


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("default")
    keys = folder / "keys.toml"
    write(keys, Key("all", digest(ALL)), Key("large", digest(LARGE), adapters=frozenset({"large"})))
    with serving(tiny.folder, folder / "log", "--default-model", "small", "--keys", str(keys)) as found:
        yield found


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("given", [{}, {"model": None}, {"model": ""}])
def test_it_is_the_default_model(server: ServerProcess, path: str, given: dict[str, Any]) -> None:
    def told(body: Any) -> Any:
        return (
            body.get("model"),
            body.get("input_tokens"),
            body.get("choices"),
            body.get("output", [{}])[0].get("content"),
        )

    status, answer = call(server, "POST", path, REQUESTS[path] | given, ALL)
    assert status == 200
    assert told(answer) == told(call(server, "POST", path, REQUESTS[path] | {"model": "small"}, ALL)[1])


def test_a_key_that_does_not_open_it_gets_nothing(server: ServerProcess) -> None:
    for path, body in REQUESTS.items():
        status, refusal = call(server, "POST", path, body, LARGE)
        assert (status, refusal["error"]["code"]) == (404, "model_not_found")
        assert call(server, "POST", path, body | {"model": "large"}, LARGE)[0] == 200


@pytest.mark.parametrize("path", REQUESTS)
def test_without_a_default_the_model_is_missing(tiny_server: ServerProcess, path: str) -> None:
    for given in ({}, {"model": None}, {"model": ""}):
        status, refusal = call(tiny_server, "POST", path, REQUESTS[path] | given)
        assert (status, refusal["error"]["message"], refusal["error"]["param"]) == (
            *(400, "Missing required parameter: model"),
            "model",
        )


def test_a_default_that_is_not_there_is_told_and_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(tiny.folder, log, "--default-model", "smal", "--dev", "--adapter-dir", str(tmp_path)) as found:
        assert "--default-model smal: there is no such model yet" in log.read_text()
        status, refusal = call(found, "POST", "/v1/completions", REQUESTS["/v1/completions"])
        assert (status, refusal["error"]["code"]) == (404, "model_not_found")
