"""/tokenize and /detokenize, and what a request can say about the text of its answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.server.process import ServerProcess
from tests.server.test_bad_input import post


def send(server: ServerProcess, path: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.loads(response.read())
    assert isinstance(found, dict)
    return found


def test_a_prompt_and_back(tiny_server: ServerProcess) -> None:
    found = send(tiny_server, "/tokenize", model="small", prompt="w10 w20", return_token_strs=True)
    assert found == {
        "count": 3,
        "max_model_len": 256,
        "tokens": [0, 10, 20],
        "token_strs": ["<s>", "w10", "w20"],
    }
    assert send(tiny_server, "/tokenize", prompt="w10 w20", add_special_tokens=False) == {
        "count": 2,
        "max_model_len": 256,
        "tokens": [10, 20],
        "token_strs": None,
    }
    assert send(tiny_server, "/detokenize", model="tiny", tokens=[0, 10, 20]) == {"prompt": "<s> w10 w20"}
    assert send(tiny_server, "/tokenize", prompt="")["tokens"] == [0]
    assert send(tiny_server, "/detokenize", tokens=[]) == {"prompt": ""}


def test_messages_are_the_prompt_of_the_chat(tiny_server: ServerProcess) -> None:
    messages: Any = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w10 w20"}]
    found = send(tiny_server, "/tokenize", messages=messages)
    answer = tiny_server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=4, temperature=0)
    assert answer.usage is not None
    assert found["count"] == answer.usage.prompt_tokens
    continued = tiny_server.client.completions.create(model="tiny", prompt=found["tokens"], max_tokens=4, temperature=0)
    assert continued.choices[0].text.split() == (answer.choices[0].message.content or "").split()
    without = send(tiny_server, "/tokenize", messages=messages, add_generation_prompt=False)
    assert without["tokens"] == found["tokens"][:-1]
    assert send(tiny_server, "/tokenize", messages=messages, add_special_tokens=True)["tokens"][:2] == [0, 0]


def test_tools_are_in_the_prompt(demo_server: ServerProcess) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather?"}]
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "description": "The weather"}}]
    plain = send(demo_server, "/tokenize", messages=messages)
    shown = send(demo_server, "/tokenize", messages=messages, tools=tools)
    text = send(demo_server, "/detokenize", tokens=shown["tokens"])["prompt"]
    assert "get_weather" in text
    assert "get_weather" not in send(demo_server, "/detokenize", tokens=plain["tokens"])["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "trunc": 3}, 400, "trunc"),
        ("/detokenize", {"tokens": [160]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]"),
        ("/detokenize", {}, 400, "tokens"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_server: ServerProcess, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    found, error = post(tiny_server, path, json.dumps(body).encode())
    assert (found, error["param"]) == (status, param)


def test_special_tokens_show_where_asked_for(batched_server: ServerProcess) -> None:
    def text(**extra: Any) -> tuple[str, str]:
        request: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "temperature": 0, "logit_bias": {"7": 100}}
        client = batched_server.client
        completed = client.completions.create(**request, prompt=[10], extra_body=extra)
        said = client.chat.completions.create(
            **request, messages=[{"role": "user", "content": "w10"}], extra_body=extra
        )
        return completed.choices[0].text, said.choices[0].message.content or ""

    assert [each.strip() for each in text()] == ["", ""]
    assert [each.strip() for each in text(skip_special_tokens=True)] == ["", ""]
    assert [each.strip() for each in text(skip_special_tokens=False)] == ["<|end|> <|end|> <|end|>"] * 2


def test_what_ends_an_answer_shows_where_asked_for(batched_server: ServerProcess) -> None:
    client = batched_server.client.completions
    plain = client.create(model="small", prompt=[10, 20], max_tokens=8, temperature=0).choices[0].text
    word = plain.split()[3]
    for stop, extra in ((word, {}), (None, {"stop_token_ids": [int(word.removeprefix("w"))]})):
        texts = [
            client.create(
                model="small",
                prompt=[10, 20],
                max_tokens=8,
                temperature=0,
                stop=stop,
                extra_body=extra | {"include_stop_str_in_output": shown},
            )
            .choices[0]
            .text
            for shown in (False, True)
        ]
        assert texts[1].split() == [*texts[0].split(), word]
        assert plain.startswith(texts[1])
