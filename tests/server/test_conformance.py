"""What OpenAI's clients rely on, checked with the official client's models; vLLM's names for guides."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.process import ServerProcess
from tests.server.strictness import validated

ASK: list[Any] = [{"role": "user", "content": "Tell me about Paris."}]
OURS = frozenset({"parent", "root", "max_model_len", "description"})
"""Fields of a model that vLLM has besides OpenAI's, and one of our own."""


@pytest.fixture(scope="module")
def client(demo_server: ServerProcess) -> openai.OpenAI:
    return demo_server.client


def lines(raw: Any) -> list[dict[str, Any]]:
    """The events of a stream that ends as it should."""
    found = [line.removeprefix("data: ") for line in raw.http_response.iter_lines() if line.startswith("data: ")]
    assert found.pop() == "[DONE]"
    return [json.loads(line) for line in found]


def test_answers_are_what_the_clients_models_say(client: openai.OpenAI) -> None:
    chat = client.chat.completions.with_raw_response.create(
        model="travel", messages=ASK, max_tokens=8, n=2, logprobs=True, top_logprobs=2, seed=1
    )
    found = validated(ChatCompletion, json.loads(chat.content))
    assert [choice.index for choice in found.choices] == [0, 1]
    plain = client.completions.with_raw_response.create(model="travel", prompt="Paris", max_tokens=8, logprobs=2)
    validated(Completion, json.loads(plain.content))
    for model in json.loads(client.models.with_raw_response.list().content)["data"]:
        validated(Model, model, known=OURS)


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False}])
def test_a_chat_stream(client: openai.OpenAI, options: Any) -> None:
    extra = {"stream_options": options} if options else {}
    chunks = lines(
        client.chat.completions.with_raw_response.create(
            model="travel", messages=ASK, max_tokens=8, n=2, stream=True, logprobs=True, **extra
        )
    )
    for chunk in chunks:
        validated(ChatCompletionChunk, chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    if options == {"include_usage": True}:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    for index in range(2):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert ["role" in choice["delta"] for choice in choices] == [True] + [False] * (len(choices) - 1)
        finishes = [choice["finish_reason"] for choice in choices]
        assert finishes[:-1] == [None] * (len(choices) - 1)
        assert finishes[-1] in ("stop", "length")
        assert choices[-1]["delta"] == {}


def test_a_completion_stream(client: openai.OpenAI) -> None:
    chunks = lines(
        client.completions.with_raw_response.create(
            model="travel", prompt="Paris", max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        # The client's model has no null here, though OpenAI's own chunks have: it is that of a whole answer.
        whole = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        validated(Completion, chunk | {"choices": whole})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][:-1] == [None] * (len(chunks) - 2)


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(model="travel", messages=ASK, max_tokens=8, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens if chunk.usage else -1 for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] <= 1
    assert counts[-1] == counts[-2] > 1


def test_an_answer_of_ours_can_be_sent_back_as_it_is(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="travel", messages=ASK, temperature=0).choices[0].message
    messages = [*ASK, first, {"role": "user", "content": "What else?"}]
    by_object = client.chat.completions.create(model="travel", messages=messages, temperature=0)
    messages[1] = {"role": "assistant", "content": first.content}
    by_hand = client.chat.completions.create(model="travel", messages=messages, temperature=0)
    assert by_object.choices == by_hand.choices


@pytest.mark.parametrize(
    ("guide", "pattern"),
    [
        ({"guided_choice": ["yes", "no", 'may be "so"']}, 'yes|no|may be "so"'),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, "ab"),
        ({"structured_outputs": {"json": {"enum": [1, 22]}}}, "1|22"),
        ({"structured_outputs": {"json": '{"enum": [1, 22]}'}}, "1|22"),
        ({"structured_outputs": {}}, "(?s:.*)"),
    ],
)
def test_an_answer_is_what_vllms_fields_say(client: openai.OpenAI, guide: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="travel", messages=ASK, temperature=1.5, seed=seed, max_tokens=40, extra_body=guide
        )
        assert re.fullmatch(pattern, answer.choices[0].message.content or "")
    completed = client.completions.create(model="travel", prompt="Paris", max_tokens=40, extra_body=guide)
    assert re.fullmatch(pattern, completed.choices[0].text)


def test_a_json_object_of_vllms(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="json",
        messages=[{"role": "user", "content": "Tell me about France."}],
        temperature=0,
        extra_body={"structured_outputs": {"json_object": True}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_fields_that_other_libraries_add_to_an_answer_are_taken_back(client: openai.OpenAI) -> None:
    def usage(**fields: Any) -> int:
        first = {"role": "assistant", "content": "Paris.", **fields}
        messages: list[Any] = [*ASK, first, {"role": "user", "content": "What else?"}]
        answer = client.chat.completions.create(model="travel", messages=messages, max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    plain = usage()
    assert usage(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None) == plain
    assert usage(provider_specific_fields={"refusal": None}) == plain
    assert usage(reasoning_content="Well.") == plain
    assert usage(parsed={"city": "Paris"}) == plain
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\]\.mood"):
        usage(mood="good")


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client's own messages
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_official_clients_helpers_make_of_an_answer_can_be_sent_back(
    client: openai.OpenAI, streaming: bool, as_dict: bool
) -> None:
    def ask(**options: Any) -> Any:
        request: dict[str, Any] = {"model": "travel", "messages": ASK, "temperature": 0, **options}
        if not streaming:
            return client.chat.completions.parse(**request).choices[0].message
        with client.chat.completions.stream(**request) as events:
            return events.get_final_completion().choices[0].message

    def send_back(message: Any, following: Any) -> None:
        sent = message.model_dump() if as_dict else message
        messages: list[Any] = [*ASK, sent, following]
        assert client.chat.completions.create(model="travel", messages=messages, max_tokens=1).choices

    answer = ask(response_format=City)
    assert isinstance(answer.parsed, City)
    send_back(answer, *ASK)
    answer = ask(tools=[openai.pydantic_function_tool(City)], tool_choice="required", parallel_tool_calls=False)
    (call,) = answer.tool_calls
    assert isinstance(call.function.parsed_arguments, City)
    send_back(answer, {"role": "tool", "tool_call_id": call.id, "content": "It is warm."})


def test_fields_of_openais_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": ASK[0]["content"], "prompt_cache_breakpoint": {}}]
    in_parts: list[Any] = [{"role": "user", "content": parts}]
    request: dict[str, Any] = {"model": "travel", "temperature": 0, "max_tokens": 8}
    plain = client.chat.completions.create(**request, messages=ASK)
    given = client.chat.completions.create(
        **request,
        messages=in_parts,
        extra_body={
            "prompt_cache_options": {"mode": "implicit"},
            "prompt_cache_retention": "24h",
            "verbosity": "medium",
            "moderation": None,
        },
    )
    assert given.choices == plain.choices
    chunks = client.chat.completions.create(
        **request, messages=ASK, stream=True, stream_options={"include_obfuscation": False}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**request, messages=ASK, moderation={"model": "omni-moderation-latest"})
    assert (refusal.value.param, refusal.value.code) == ("moderation", "unsupported_parameter")


def test_variables_of_the_chat_template_are_accepted(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "travel", "messages": ASK, "temperature": 0, "max_tokens": 8}
    plain = client.chat.completions.create(**request)
    given = client.chat.completions.create(**request, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert given.choices == plain.choices
