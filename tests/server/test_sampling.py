"""What clients can ask of sampling, on the lanes that honour it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import openai
import pytest

from tests.checkpoints import reference_logits
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess

PROMPT = [99, 8, 64, 64, 41, 150, 12, 77, 31]


@pytest.fixture(params=["batched_server", "generator_server"])
def choosing_server(request: pytest.FixtureRequest) -> ServerProcess:
    server: ServerProcess = request.getfixturevalue(request.param)
    return server


def test_logprobs_are_those_of_peft(tiny: TinyBundle, choosing_server: ServerProcess) -> None:
    answer = choosing_server.client.completions.create(
        model="middle", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=5
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    ids = [int(token.strip().removeprefix("w")) for token in found.tokens]
    logits = reference_logits(tiny.checkpoint, tiny.adapters["middle"], PROMPT + ids)[len(PROMPT) - 1 : -1]
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= logits.max(-1, keepdims=True)
    np.testing.assert_allclose(found.token_logprobs, expected[np.arange(len(ids)), ids], atol=1e-3)
    for top, row in zip(found.top_logprobs, expected, strict=True):
        np.testing.assert_allclose(sorted(top.values()), np.sort(row)[-5:], atol=1e-3)
    assert [answer.choices[0].text[at:].split()[0] for at in found.text_offset] == [
        token.strip() for token in found.tokens
    ]


def test_streamed_chat_logprobs_are_the_whole_ones(choosing_server: ServerProcess) -> None:
    request = {
        "model": "small",
        "messages": [{"role": "user", "content": "w10 w20"}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    client = choosing_server.client.chat.completions
    whole = client.create(**request).choices[0].logprobs  # type: ignore[call-overload]
    streamed = [
        item
        for chunk in client.create(**request, stream=True)  # type: ignore[call-overload]
        for item in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == whole.content
    assert all(len(item.top_logprobs) == 2 for item in streamed)
    assert all(item.logprob == item.top_logprobs[0].logprob for item in streamed)


def test_a_logit_bias_forces_and_forbids(choosing_server: ServerProcess) -> None:
    def answer(bias: dict[str, int]) -> list[str]:
        text = (
            choosing_server.client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=6, temperature=0, logit_bias=bias
            )
            .choices[0]
            .text
        )
        return text.split()

    plain = answer({})
    assert answer({"50": 100}) == ["w50"] * 6
    assert plain[0] not in answer({plain[0].removeprefix("w"): -100})


def test_penalties_keep_an_answer_from_repeating(choosing_server: ServerProcess) -> None:
    def answer(**penalties: Any) -> list[str]:
        text = (
            choosing_server.client.completions.create(
                model="tiny",
                prompt=PROMPT,
                max_tokens=40,
                temperature=0,
                logit_bias={"50": 40},
                extra_body={"ignore_eos": True},
                **penalties,
            )
            .choices[0]
            .text
        )
        return str(text).split()

    repeated = answer().count("w50")
    assert repeated == 40
    assert 1 < answer(frequency_penalty=2.0).count("w50") < 40
    assert answer(presence_penalty=0.5).count("w50") == 40


def test_an_answer_ends_where_it_is_told(choosing_server: ServerProcess) -> None:
    client = choosing_server.client.completions
    plain = client.create(model="small", prompt=PROMPT, max_tokens=10, temperature=0).choices[0].text.split()
    stop = int(plain[2].removeprefix("w"))
    stopped = client.create(
        model="small", prompt=PROMPT, max_tokens=10, temperature=0, extra_body={"stop_token_ids": [stop]}
    )
    assert stopped.choices[0].text.split() == plain[: plain.index(plain[2])]
    assert stopped.choices[0].finish_reason == "stop"
    ends = {"1": 100}
    at_once = client.create(model="small", prompt=PROMPT, max_tokens=10, temperature=0, logit_bias=ends)
    assert at_once.choices[0].text == ""
    later = client.create(
        model="small", prompt=PROMPT, max_tokens=10, temperature=0, logit_bias=ends, extra_body={"min_tokens": 4}
    )
    assert later.usage is not None
    assert later.usage.completion_tokens == 5
    never = client.create(
        model="small", prompt=PROMPT, max_tokens=10, temperature=0, logit_bias=ends, extra_body={"ignore_eos": True}
    )
    assert never.usage is not None
    assert never.usage.completion_tokens == 10


def test_a_prompt_that_comes_back_is_cached(batched_server: ServerProcess) -> None:
    client = batched_server.client.completions
    prompt = [8 + (7 * index) % 150 for index in range(120)]
    first = client.create(model="large", prompt=prompt, max_tokens=4, temperature=0)
    again = client.create(model="large", prompt=prompt, max_tokens=4, temperature=0)
    other = client.create(model="middle", prompt=prompt, max_tokens=4, temperature=0)
    assert again.choices == first.choices
    details = [each.usage and each.usage.prompt_tokens_details for each in (first, again, other)]
    cached = [found.cached_tokens or 0 for found in details if found]
    assert cached[0] == 0
    assert cached[1] > 60
    assert cached[2] == 0


@pytest.mark.parametrize("seed", range(4))
def test_guided_answers_are_valid(demo_server: ServerProcess, seed: int) -> None:
    client = demo_server.client.chat.completions
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "stars": {"enum": [1, 2, 3]}},
        "required": ["city", "stars"],
        "additionalProperties": False,
    }
    ask: Any = [{"role": "user", "content": "Tell me about Paris."}]
    answer = client.create(
        model="travel",
        messages=ask,
        temperature=1.5,
        seed=seed,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"city", "stars"}
    assert found["stars"] in (1, 2, 3)
    matched = client.create(
        model="tone",
        messages=ask,
        temperature=1.5,
        seed=seed,
        extra_body={"guided_regex": "(yes|no), [0-9]{2} times"},
    )
    assert re.fullmatch("(yes|no), [0-9]{2} times", matched.choices[0].message.content or "")


@pytest.mark.parametrize("regex", [r"[^\s\S]", "(a{1000}){1000}"])
def test_a_guide_that_cannot_be_followed_is_the_requests_fault(demo_server: ServerProcess, regex: str) -> None:
    with pytest.raises(openai.BadRequestError, match="the guide cannot be followed") as refusal:
        demo_server.client.completions.create(model="tone", prompt="Once", extra_body={"guided_regex": regex})
    assert len(refusal.value.message) < 500
