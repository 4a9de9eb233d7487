"""POST /v1/responses by the official client: answers, streams, calls, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.server.bytes_bundle import TEMPLATES, likely, make_bundle
from tests.server.process import ServerProcess, serving
from tests.server.responses import ask, stream

TIME: dict[str, Any] = {
    "type": "function",
    "name": "get_time",
    "description": "What time it is",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("responses")
    with serving(make_bundle(folder, TEMPLATES["hermes"]), folder / "log", "--engine", "batched") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client


def test_it_says_what_chat_completions_say(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="bytes",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        max_tokens=12,
        seed=7,
    )
    answer = ask(client, instructions="Be brief.", metadata={"trace": "1"})
    assert answer.output_text == chat.choices[0].message.content
    assert answer.instructions == "Be brief."
    assert answer.metadata == {"trace": "1"}
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.total_tokens == chat.usage.total_tokens


def test_an_answer_that_ends_is_completed(client: openai.OpenAI) -> None:
    answer = ask(client, extra_body={"logit_bias": likely("</s>")})
    assert answer.status == "completed"
    assert answer.incomplete_details is None
    assert answer.output_text == ""
    assert [item.type for item in answer.output] == ["message"]


def test_streamed_text_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = ask(client)
    events = stream(client)
    assert [each.type for each in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [each.type for each in events[-4:]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert "".join(each.delta for each in events[4:-4]) == whole.output_text == events[-4].text
    last = events[-1].response
    assert last.output_text == whole.output_text
    assert last.id == events[0].response.id
    assert last.usage.output_tokens == 12
    (message,) = last.output
    assert {each.item_id for each in events[3:-2]} == {message.id}


def test_a_call_and_what_it_came_to(client: openai.OpenAI) -> None:
    asked = ask(client, tools=[TIME], tool_choice="required", parallel_tool_calls=False, max_output_tokens=100)
    assert asked.status == "completed"
    (call,) = asked.output
    assert call.type == "function_call"
    assert call.name == "get_time"
    assert json.loads(call.arguments)["zone"] in ("UTC", "CET")
    items: list[Any] = [
        {"role": "user", "content": "What time is it?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Noon."},
    ]
    answer = ask(client, input=items, tools=[TIME], tool_choice="none")
    chat = client.chat.completions.create(
        model="bytes",
        messages=[
            {"role": "user", "content": "What time is it?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "Noon."},
        ],
        max_tokens=12,
        seed=7,
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_streamed_calls(client: openai.OpenAI) -> None:
    events = stream(
        client,
        tools=[TIME],
        max_output_tokens=160,
        extra_body={"logit_bias": likely("<tool_call>", "Ċ", bias=40)},
    )
    final = events[-1].response
    assert final.status in ("completed", "incomplete")
    assert len(final.output) > 1
    for index, item in enumerate(final.output[:-1]):
        assert item.type == "function_call"
        of_item = [each for each in events if getattr(each, "output_index", None) == index]
        assert of_item[0].type == "response.output_item.added"
        assert of_item[0].item.arguments == ""
        assert of_item[0].item.call_id == item.call_id
        assert of_item[-1].item == item
        deltas = [each.delta for each in of_item if each.type == "response.function_call_arguments.delta"]
        assert len(deltas) > 1
        assert "".join(deltas) == item.arguments == of_item[-2].arguments
        assert json.loads(item.arguments)["zone"] in ("UTC", "CET")


def test_the_official_streams_helper_reads_it(client: openai.OpenAI) -> None:
    with client.responses.stream(model="bytes", input="Hello", max_output_tokens=8, extra_body={"seed": 7}) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == ask(client, max_output_tokens=8).output_text


def test_text_in_a_format(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"enum": [1, 2]}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    answer = ask(
        client,
        max_output_tokens=100,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        extra_body={"logit_bias": likely(*'":}', bias=60)},
    )
    assert json.loads(answer.output_text) in ({"ok": 1}, {"ok": 2})
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def test_logprobs(client: openai.OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    answer = ask(client, include=include, top_logprobs=2)
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert len(part.logprobs or []) == 12
    deltas = [each for each in stream(client, include=include, top_logprobs=2) if "text.delta" in each.type]
    assert sum(len(each.logprobs) for each in deltas) == 12


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "invalid_value"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].tool_call_id",
            "invalid_value",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [TIME, TIME]}, "tools[1].name", "invalid_value"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"max_output_tokens": 5000}, "input", "context_length_exceeded"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "x"}}}}, "text.format", None),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
    ],
)
def test_what_cannot_be_is_refused(client: openai.OpenAI, changes: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model="bytes", input="Hello", extra_body=changes)
    assert (refusal.value.param, refusal.value.code) == (param, code or "invalid_value")


def test_what_changes_nothing_is_accepted(client: openai.OpenAI) -> None:
    ask(
        client,
        store=False,
        user="someone",
        prompt_cache_key="k",
        service_tier="auto",
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        previous_response_id=None,
        tool_choice="auto",
        tools=[],
        text={"verbosity": "medium"},
        extra_body={
            "access_programs": None,
            "context_management": None,
            "image": None,
            "moderation": None,
            "prompt": None,
            "prompt_cache_options": {"mode": "implicit"},
            "prompt_cache_retention": "24h",
        },
    )


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client's own items
def test_what_the_official_client_makes_of_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    class Zone(pydantic.BaseModel):
        zone: Literal["UTC", "CET"]

    user: Any = {"role": "user", "content": "What time is it?"}
    request: dict[str, Any] = {"model": "bytes", "temperature": 0, "max_output_tokens": 100}
    said = client.responses.parse(
        input=[user], text_format=Zone, extra_body={"logit_bias": likely(*'":}', bias=60)}, **request
    )
    assert isinstance(said.output_parsed, Zone)
    tools: Any = [TIME]
    called = client.responses.parse(
        input=[user], tools=tools, tool_choice="required", parallel_tool_calls=False, **request
    )
    (call,) = called.output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Noon."}
    for by_alias in (False, True):
        items = [item.model_dump(by_alias=by_alias) for item in (*said.output, *called.output)]
        assert ask(client, input=[user, *items, result]).output_text
    assert ask(client, input=[user, *said.output, *called.output, result]).output_text


def test_input_tokens_are_those_of_the_prompt(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"input": "What time is it?", "instructions": "Be brief.", "tools": [TIME]}
    counted = client.responses.input_tokens.count(model="bytes", **request)
    assert counted.object == "response.input_tokens"
    answer = client.responses.create(model="bytes", max_output_tokens=4, **request)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="tool_choice needs tools") as refusal:
        client.responses.input_tokens.count(model="bytes", input="Hello", tool_choice="required")
    assert refusal.value.param == "tool_choice"
    long = client.responses.input_tokens.count(model="bytes", input="word " * 5000)
    assert long.input_tokens > 20_000  # however long a prompt may be


def test_penalties_are_taken_and_told(client: openai.OpenAI) -> None:
    plain = ask(client)
    told = ask(client, extra_body={"frequency_penalty": 2, "presence_penalty": 1.5})
    assert told.model_extra is not None
    assert (told.model_extra["frequency_penalty"], told.model_extra["presence_penalty"]) == (2, 1.5)
    assert told.output_text != plain.output_text
    assert told.completed_at is None  # it was cut
