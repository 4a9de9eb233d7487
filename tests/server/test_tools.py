"""Tools by the official client, on models of every family that calls them in a way of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.bytes_bundle import NEWLINE, TEMPLATES, likely, make_bundle
from tests.server.process import ServerProcess, serving
from tests.server.strictness import validated

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
NOTHING: dict[str, Any] = {"type": "function", "function": {"name": "nothing"}}
ASK: list[Any] = [{"role": "user", "content": "Is it warm?"}]
TRIGGERS = {"hermes": "<tool_call>", "llama": "{", "mistral": "[TOOL_CALLS]", "phi-4": "<|tool_call|>"}
QUICK = ("hermes", "generic")
SERVERS = [pytest.param(each, id=each, marks=() if each in QUICK else pytest.mark.slow) for each in TEMPLATES]


@pytest.fixture(scope="module", params=SERVERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp(family)
    with serving(make_bundle(folder, TEMPLATES[family]), folder / "log", "--engine", "batched") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client


def ask(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    request: dict[str, Any] = {
        "model": "bytes", "messages": ASK, "tools": [WEATHER, TIME], "temperature": 1, "seed": 7, "max_tokens": 400
    }  # fmt: skip
    raw = client.chat.completions.with_raw_response.create(**request | options)
    return validated(ChatCompletion, json.loads(raw.content))


def check_call(call: Any, family: str) -> str:
    """A call's name, once its arguments are what its schema says."""
    assert re.fullmatch("[a-zA-Z0-9]{9}" if family == "mistral" else "call_[0-9a-f]{24}", call.id)
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments.keys() == {"city", "days"}
        assert len(arguments["city"]) <= 6
        assert arguments["days"] in (1, 2, 3)
    else:
        assert arguments in ({"zone": "UTC"}, {"zone": "CET"})
    return str(call.function.name)


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_fits_its_schema(client: openai.OpenAI, family: str, seed: int) -> None:
    (choice,) = ask(client, tool_choice="required", parallel_tool_calls=False, seed=seed).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert check_call(call, family) in ("get_weather", "get_time")


@pytest.mark.parametrize("name", ["get_weather", "get_time", "nothing"])
def test_a_named_function_is_called_once(client: openai.OpenAI, name: str) -> None:
    answer = ask(client, tools=[WEATHER, TIME, NOTHING], tool_choice={"type": "function", "function": {"name": name}})
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == name
    if name == "nothing":
        assert json.loads(call.function.arguments) == {}


def test_allowed_tools_leave_the_others_out(client: openai.OpenAI) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    for seed in range(4):
        answer = ask(client, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, seed=seed, max_tokens=80)
        calls = answer.choices[0].message.tool_calls or []
        assert {call.function.name for call in calls if call.type == "function"} == {"get_time"}


def test_several_calls_at_once(client: openai.OpenAI, family: str) -> None:
    found = []
    for seed in range(3):
        on = likely(",", NEWLINE, bias=40)  # what stands between two calls
        (choice,) = ask(client, tool_choice="required", seed=seed, logit_bias=on, max_tokens=160).choices
        calls = choice.message.tool_calls or []
        for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
            check_call(call, family)
        assert len({call.id for call in calls}) == len(calls)
        found.append(len(calls))
    assert max(found) == 1 if family == "llama" else max(found) > 1


def test_streamed_calls_are_the_whole_ones(client: openai.OpenAI, family: str) -> None:
    request: dict[str, Any] = {
        "model": "bytes",
        "messages": ASK,
        "tools": [WEATHER, TIME],
        "tool_choice": "required",
        "temperature": 1,
        "n": 2,
        "seed": 11,
        "max_tokens": 120,
    }
    whole = client.chat.completions.create(**request)
    raw = client.chat.completions.with_raw_response.create(**request, stream=True)
    lines = [line.removeprefix("data: ") for line in raw.http_response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [validated(ChatCompletionChunk, json.loads(line)) for line in lines]
    for choice in whole.choices:
        deltas = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert [each.delta.role for each in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert [each.finish_reason for each in deltas] == [None] * (len(deltas) - 1) + [choice.finish_reason]
        calls: list[dict[str, str]] = []
        for each in deltas:
            for call in each.delta.tool_calls or []:
                assert call.function is not None
                if call.id:
                    assert call.index == len(calls)
                    assert call.type == "function"
                    calls.append({"name": call.function.name or "", "arguments": ""})
                assert call.index == len(calls) - 1
                assert bool(call.id) == bool(call.function.name)
                calls[-1]["arguments"] += call.function.arguments or ""
        assert calls == [
            {"name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ]
        assert sum(bool(each.delta.tool_calls) for each in deltas) > 5
        assert family != "mistral" or all("TOOL_CALLS" not in (each.delta.content or "") for each in deltas)


def test_auto_leaves_it_to_the_model(client: openai.OpenAI, family: str) -> None:
    said = ask(client, logit_bias=likely("y"), max_tokens=5).choices[0]
    assert said.message.content == "yyyyy"
    assert said.message.tool_calls is None
    if family in TRIGGERS:
        called = ask(client, logit_bias=likely(TRIGGERS[family]), parallel_tool_calls=False).choices[0]
        assert called.finish_reason == "tool_calls"
        assert called.message.content is None
        (call,) = called.message.tool_calls or []
        check_call(call, family)


def test_text_may_come_before_a_call(client: openai.OpenAI, family: str) -> None:
    if family not in TRIGGERS or family == "llama":
        pytest.skip("the trigger is not a token, or the call is the whole answer")
    bias = likely(TRIGGERS[family], bias=8)
    answers = [ask(client, logit_bias=bias, parallel_tool_calls=False, seed=seed).choices[0] for seed in range(6)]
    mixed = [each for each in answers if each.message.content and each.message.tool_calls]
    assert mixed
    for each in mixed:
        assert each.finish_reason == "tool_calls"
        check_call((each.message.tool_calls or [])[0], family)
        assert TRIGGERS[family] not in (each.message.content or "")


def test_none_calls_nothing(client: openai.OpenAI, family: str) -> None:
    without = ask(client, tools=openai.NOT_GIVEN, max_tokens=40)
    assert ask(client, tool_choice="none", max_tokens=40).choices == without.choices
    assert ask(client, tools=[], max_tokens=40).choices == without.choices
    trigger = TRIGGERS.get(family, "<")
    answer = ask(client, tool_choice="none", logit_bias=likely(trigger), max_tokens=8).choices[0]
    assert answer.message.tool_calls is None
    assert answer.finish_reason == "length"


def test_a_conversation_goes_on_with_what_a_call_came_to(client: openai.OpenAI) -> None:
    messages = list(ASK)
    asked = ask(client, messages=messages, tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = asked.tool_calls or []
    messages += [asked, {"role": "tool", "tool_call_id": call.id, "content": "It is warm."}]
    answer = ask(client, messages=messages, tool_choice="none", max_tokens=8)
    other = ask(
        client, messages=[*messages[:-1], messages[-1] | {"content": "Cold."}], tool_choice="none", max_tokens=8
    )
    assert answer.usage is not None
    assert other.usage is not None
    assert answer.usage.prompt_tokens - other.usage.prompt_tokens == len("It is warm.") - len("Cold.")


def test_the_model_is_told_of_its_tools(client: openai.OpenAI) -> None:
    with_tools, without = ask(client, max_tokens=1), ask(client, max_tokens=1, tool_choice="none")
    assert with_tools.usage is not None
    assert without.usage is not None
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + len(json.dumps(WEATHER["function"]))


def test_json_or_a_call(client: openai.OpenAI, family: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    options: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }
    if family == "llama":
        with pytest.raises(openai.BadRequestError, match="cannot be told from a JSON answer"):
            ask(client, **options)
        return
    said = ask(client, logit_bias=likely(*'":}', bias=60) | likely("{"), **options).choices[0]
    assert json.loads(said.message.content or "") in ({"ok": True}, {"ok": False})
    assert said.finish_reason == "stop"
    called = ask(client, logit_bias=likely(TRIGGERS.get(family, "<")), parallel_tool_calls=False, **options).choices[0]
    assert called.finish_reason == "tool_calls"
    check_call((called.message.tool_calls or [])[0], family)


def test_a_call_that_is_cut_is_no_call(client: openai.OpenAI) -> None:
    tool_choice = {"type": "function", "function": {"name": "get_weather"}}
    choice = ask(client, tool_choice=tool_choice, max_tokens=60).choices[0]
    assert choice.finish_reason in ("length", "tool_calls")
    for limit in (1, 20):
        cut = ask(client, tool_choice=tool_choice, max_tokens=limit).choices[0]
        assert cut.finish_reason == "length"


def test_white_space_between_tokens_of_json_comes_to_an_end(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": [2]}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema}}
    lost = likely("Ġ", NEWLINE)  # writes nothing else where it may
    for fields in ({"response_format": wanted}, {"extra_body": {"guided_json": json.dumps(schema)}}):
        answer = ask(client, tools=[], logit_bias=lost, temperature=0, max_tokens=400, **fields).choices[0]
        assert answer.finish_reason == "stop"
        content = answer.message.content or ""
        assert json.loads(content) == {"a": 1, "b": 2}
        assert len(content) > 100
    free = schema | {"x-guidance": {"whitespace_flexible": False}}  # says so itself
    tight = ask(client, tools=[], logit_bias=lost, temperature=0, extra_body={"guided_json": free}).choices[0]
    assert tight.message.content == '{"a":1,"b":2}'
