"""One line for each request, without what was said in it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from loraplex.server.keys import Key, digest, entry, new_key
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import PATIENCE, ServerProcess, serving, wait_until

SECRET = new_key()
PROMPT = "w11 w12 w13"


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("logs")
    (folder / "keys.toml").write_text(entry(Key("customer", digest(SECRET))))
    flags = ("--log-format", "json", "--keys", str(folder / "keys.toml"))
    limits = ("--max-model-len", "128", "--max-running", "1")
    with serving(tiny.folder, folder / "log", *flags, *limits) as found:
        yield found
    assert SECRET not in found.log.read_text()
    assert PROMPT not in found.log.read_text()
    lines = found.log.read_text().splitlines()
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines)


def line(server: ServerProcess, request_id: str) -> dict[str, Any]:
    """The line of a request; it comes when the request has ended, which may be after its answer has."""
    found: list[dict[str, Any]] = []

    def told() -> bool:
        written, _, _ = server.log.read_text().rpartition("\n")  # the last line may not be whole yet
        lines = [json.loads(each) for each in written.splitlines()]
        found[:] = [each for each in lines if each["logger"] == "loraplex.access" and each["request"] == request_id]
        return bool(found)

    wait_until(told, server.log.read_text)
    (only,) = found
    return only


def ask(server: ServerProcess, request_id: str, **more: Any) -> Any:
    client = server.client.with_options(api_key=SECRET, default_headers={"x-request-id": request_id})
    body: dict[str, Any] = {"model": "small", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    return client.completions.create(**body | more)


def test_the_engine_logs_in_the_same_form(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log", "--log-format", "json") as server:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert "loraplex.operator" in {line["logger"] for line in lines}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_one_line_with_its_tokens_and_times(server: ServerProcess, stream: bool) -> None:
    answer = ask(server, f"answer-{stream}", stream=stream)
    if stream:
        list(answer)
    found = line(server, f"answer-{stream}")
    assert found["message"] == "POST /v1/completions 200"
    assert (found["method"], found["path"], found["status"]) == ("POST", "/v1/completions", 200)
    assert (found["adapter"], found["key"], found["finish"]) == ("small", "customer", "length")
    assert (found["generated_tokens"], found["level"]) == (4, "info")
    assert found["prompt_tokens"] >= 3
    assert 0 <= found["cached_tokens"] <= found["prompt_tokens"]
    assert 0 < found["queue_seconds"] < found["first_token_seconds"] < found["seconds"] < 60
    assert "code" not in found


def test_a_refusal_has_its_code(server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(server, "refused", model="nobody")
    found = line(server, "refused")
    assert (found["status"], found["code"], found["key"]) == (404, "model_not_found", "customer")
    assert "adapter" not in found


def test_who_left_is_told_from_who_was_answered(server: ServerProcess) -> None:
    answer = ask(server, "left", stream=True, max_tokens=120, extra_body={"ignore_eos": True}, n=128)
    next(iter(answer))
    answer.close()
    # A fast machine may have finished the first by then; the others wait for the one place, for seconds.
    assert "cancelled" in str(line(server, "left")["finish"]).split(",")


def test_an_error_in_a_stream_has_its_code(server: ServerProcess) -> None:
    with pytest.raises(openai.APIError, match="time was over"):
        list(ask(server, "late", stream=True, extra_body={"timeout": 0.000001}))
    found = line(server, "late")
    assert (found["status"], found["code"], found["finish"]) == (200, "timeout", "timeout")
    assert found["generated_tokens"] == 0


def test_paths_are_logged_as_they_came_and_queries_are_not(server: ServerProcess) -> None:
    request = urllib.request.Request(
        f"{server.url}/v1/a%0Ab/{'x' * 1000}?key={SECRET}", headers={"x-request-id": "odd-path"}
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=PATIENCE)
    refusal.value.close()
    path = line(server, "odd-path")["path"]
    assert path.startswith("/v1/a%0Ab/xxx")
    assert len(path) == 200


def test_what_machines_ask_all_the_time_is_not_logged(server: ServerProcess) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert server.get(path)[0] == 200
    ask(server, "after")
    line(server, "after")
    assert '"/health"' not in server.log.read_text()


def test_people_get_lines_to_read(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log") as server:
        ask(server, "for-people")
        server.wait_for_line("loraplex.access")
    (found,) = (each for each in (tmp_path / "log").read_text().splitlines() if "loraplex.access" in each)
    assert " INFO loraplex.access: POST /v1/completions 200 request=for-people seconds=" in found
    assert " adapter=small prompt_tokens=" in found
    assert PROMPT not in found
