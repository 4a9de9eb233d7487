"""Every bad request gets a clear refusal in OpenAI's shape, and costs nobody else anything."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "w10"}]
DROP = object()
F = {"type": "function", "function": {"name": "f"}}
LONG_CHAIN = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "a"\n'
"""Overflows the stack of the process that compiles it."""


def deep(levels: int) -> dict[str, Any]:
    """A schema so deep; some 480 levels are as many as the decoder of bodies takes."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def post(server: ServerProcess, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and the error object of an answer that must be a refusal."""
    request = urllib.request.Request(server.url + path, body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    with refusal.value as response:
        content = json.loads(response.read())
    assert set(content) == {"error"}
    error = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return refusal.value.code, error


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": DROP}, "model", "invalid_value"),
        ({"model": 7}, "model", "invalid_value"),
        ({"messages": DROP}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "warm"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"verbose": True}}, "stream_options.verbose", "unknown_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -2.5}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"160": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]", "invalid_value"),
        ({"stop_token_ids": [160]}, "stop_token_ids", "invalid_value"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            "response_format",
            "invalid_value",
        ),
        ({"guided_json": '{"type":'}, "guided_json", "invalid_value"),
        ({"guided_regex": "(a"}, "guided_regex", "invalid_value"),
        ({"guided_grammar": "x y z"}, "guided_grammar", "invalid_value"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_json", "invalid_value"),
        ({"guided_grammar": LONG_CHAIN}, "guided_grammar", "invalid_value"),
        ({"guided_json": "{}" + " " * 70_000}, "guided_json", "invalid_value"),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "invalid_value"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs.grammar", "invalid_value"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "unknown_parameter"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": deep(440)}}},
            "response_format",
            "invalid_value",
        ),
        ({"chat_template_kwargs": {"a": 1}, "chat_template": "x"}, "chat_template", "unknown_parameter"),
        ({"max_tokens": 300}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "w10 " * 900_000}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "w10 " * 300}]}, "messages", "context_length_exceeded"),
        ({"model": "m" * 257}, "model", "invalid_value"),
    ],
)
def test_a_bad_chat_request_is_refused(
    tiny_server: ServerProcess, changes: dict[str, Any], param: str, code: str
) -> None:
    body = {"model": "small", "messages": MESSAGES} | changes
    status, error = post(tiny_server, CHAT, json.dumps({k: v for k, v in body.items() if v is not DROP}).encode())
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"prompt": DROP}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [160]}, "prompt", "invalid_value"),
        ({"prompt": [10, 2**70]}, "prompt", "invalid_value"),
        ({"prompt": [[10]] * 65, "n": 2}, "n", "invalid_value"),
        ({"prompt": ["w10"] * 500_000}, "n", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"prompt": [10] * 256}, "prompt", "context_length_exceeded"),
        ({"prompt": "w10 " * 900_000}, "prompt", "context_length_exceeded"),
    ],
)
def test_a_bad_completion_request_is_refused(
    tiny_server: ServerProcess, changes: dict[str, Any], param: str, code: str
) -> None:
    body = {"model": "small", "prompt": [10]} | changes
    status, error = post(
        tiny_server, COMPLETIONS, json.dumps({k: v for k, v in body.items() if v is not DROP}).encode()
    )
    assert (status, error["param"], error["code"]) == (400, param, code)


def test_neutral_values_of_unsupported_fields_are_accepted(tiny_server: ServerProcess) -> None:
    answer = tiny_server.client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": "w10"}],
        max_tokens=2,
        logprobs=False,
        frequency_penalty=0.0,
        presence_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        user="someone",
        metadata={"trace": "1"},
    )
    assert answer.choices


def test_a_prompt_over_the_context_names_both_numbers(tiny_server: ServerProcess) -> None:
    _, error = post(tiny_server, COMPLETIONS, json.dumps({"model": "small", "prompt": [10] * 300}).encode())
    assert "256" in error["message"]
    assert "300" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"model": "sm', b'{"model": "small",}', b"nonsense"])
def test_malformed_json_is_refused(tiny_server: ServerProcess, body: bytes) -> None:
    status, error = post(tiny_server, CHAT, body)
    assert (status, error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"'])
def test_json_that_is_no_object_is_refused(tiny_server: ServerProcess, body: bytes) -> None:
    status, error = post(tiny_server, CHAT, body)
    assert (status, error["code"]) == (400, "invalid_value")


def test_deeply_nested_json_is_refused(tiny_server: ServerProcess) -> None:
    body = b'{"model": "small", "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    status, _ = post(tiny_server, CHAT, body)
    assert status == 400


def test_an_unknown_model_is_not_found(tiny_server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        tiny_server.client.completions.create(model="nobody", prompt="w10")
    assert refusal.value.code == "model_not_found"
    assert refusal.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        tiny_server.client.models.retrieve("nobody")


def test_a_body_over_the_limit_is_too_large(tiny_server: ServerProcess) -> None:
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "w10 " * 2_000_000}]}).encode()
    status, error = post(tiny_server, CHAT, body)
    assert (status, error["code"]) == (413, "request_too_large")


def test_endless_headers_are_refused(tiny_server: ServerProcess) -> None:
    host, port = tiny_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**26:
                sent += connection.send(b"x-filler: " + b"y" * 1000 + b"\r\n")
            connection.shutdown(socket.SHUT_WR)
        assert sent < 2**26
        with suppress(ConnectionError):
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b"headers_too_large" in answer
    assert tiny_server.get("/health")[0] == 200


@pytest.mark.parametrize("sent", [b"hello\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_what_is_not_http_is_refused(tiny_server: ServerProcess, sent: bytes) -> None:
    host, port = tiny_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"invalid_http"' in answer
    assert tiny_server.get("/health")[0] == 200


def test_long_headers_and_a_long_body_are_no_flood(tiny_server: ServerProcess) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 1, "user": "u" * 200_000}).encode()
    headers = {"content-type": "application/json", "x-long": "y" * 30_000}
    for _ in range(2):
        request = urllib.request.Request(tiny_server.url + CHAT, body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200


def test_unknown_paths_and_methods_have_the_same_shape(tiny_server: ServerProcess) -> None:
    assert post(tiny_server, "/v1/nowhere", b"{}")[0] == 404
    assert post(tiny_server, "/v1/models", b"{}")[0] == 405


def test_a_full_queue_says_when_to_come_back(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log", "--max-running", "2", "--max-waiting", "1") as server:
        with ThreadPoolExecutor() as pool:
            server.engine().suspend()
            full = pool.submit(server.client.completions.create, model="small", prompt=[10], n=3, max_tokens=4)
            server.wait_for("loraplex_requests_waiting", 1, adapter="small")
            with pytest.raises(openai.RateLimitError) as refusal:
                server.client.completions.create(model="small", prompt=[10], max_tokens=4)
            server.engine().resume()
            full.result(60)
        assert refusal.value.code == "queue_full"
        assert int(refusal.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError, match="fewer at once") as never:
            server.client.completions.create(model="small", prompt=[10], n=4, max_tokens=4)
        assert never.value.response.headers["x-should-retry"] == "false"
        # Nothing of the refused request is left in the queue.
        answer = server.client.completions.create(model="small", prompt=[10], n=3, max_tokens=4)
        assert len(answer.choices) == 3
        assert server.metric("loraplex_requests_waiting", adapter="small") == 0
        assert server.metric("loraplex_requests_running", adapter="small") == 0


def test_the_server_answers_as_before(tiny_server: ServerProcess) -> None:
    answer = tiny_server.client.completions.create(model="small", prompt=[10, 20], max_tokens=8, temperature=0)
    for _ in range(3):
        post(tiny_server, CHAT, b"{")
        post(tiny_server, COMPLETIONS, b'{"model": "small", "prompt": [99999]}')
    again = tiny_server.client.completions.create(model="small", prompt=[10, 20], max_tokens=8, temperature=0)
    assert answer.choices == again.choices
