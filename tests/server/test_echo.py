"""Completions that begin with their prompt, and what the model thinks of it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.checkpoints import quiet
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess
from tests.server.test_bad_input import post

PROMPT = [0, 10, 11, 12, 40, 10]


def test_an_echo_begins_with_the_prompt(tiny_server: ServerProcess) -> None:
    client = tiny_server.client.completions
    request: dict[str, Any] = {"model": "small", "max_tokens": 4, "temperature": 0}
    plain = client.create(**request, prompt="w10 w11").choices[0].text
    assert client.create(**request, prompt="w10 w11", echo=True).choices[0].text == "w10 w11" + plain
    ids = client.create(**request, prompt=[[0, 10, 11], [12]], echo=True, n=2)
    assert [choice.text for choice in ids.choices[:2]] == ["w10 w11" + plain] * 2
    assert ids.choices[3].text.startswith("w12")
    chunks = client.create(**request, prompt="w10 w11", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "w10 w11" + plain


@pytest.fixture(scope="module")
def expected(tiny: TinyBundle) -> Any:
    """Log probabilities of every token after each one of PROMPT, by PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet(), torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained(tiny.checkpoint)
        model = PeftModel.from_pretrained(base, str(tiny.adapters["large"]))
        return model(torch.tensor([PROMPT])).logits[0].log_softmax(-1).numpy()


def test_a_prompt_is_scored_as_peft_scores_it(tiny_server: ServerProcess, expected: Any) -> None:
    client = tiny_server.client.completions
    for tokens in (0, 3):
        answer = client.create(model="large", prompt=PROMPT, max_tokens=tokens, echo=True, logprobs=2, temperature=0)
        (choice,) = answer.choices
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), tokens)
        found = choice.logprobs
        assert found is not None
        assert found.tokens is not None
        assert found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert found.text_offset is not None
        assert len(found.tokens) == len(PROMPT) + tokens
        assert found.token_logprobs[0] is None
        assert found.top_logprobs[0] is None
        for place in range(1, len(PROMPT)):
            row = expected[place - 1]
            assert found.token_logprobs[place] == pytest.approx(row[PROMPT[place]], abs=2e-3)
            best = max(found.top_logprobs[place].values())
            assert best == pytest.approx(row.max(), abs=2e-3)
            assert found.top_logprobs[place][found.tokens[place]] == found.token_logprobs[place]
        for token, offset in list(zip(found.tokens, found.text_offset, strict=True))[2:]:
            assert choice.text[offset:].lstrip().startswith(token)
        assert choice.finish_reason == "length"


def test_a_stream_and_a_whole_answer_score_alike(tiny_server: ServerProcess) -> None:
    client = tiny_server.client.completions
    request: dict[str, Any] = {"model": "small", "echo": True, "logprobs": 1, "temperature": 0}
    request |= {"prompt": [PROMPT, [10]], "max_tokens": 3, "n": 2}
    client.create(**request | {"echo": False})
    whole = client.create(**request)  # whose prompts the server has seen
    texts, tokens, values = [""] * 4, [[] for _ in range(4)], [[] for _ in range(4)]  # type: ignore[var-annotated]
    for chunk in client.create(**request, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens or []
                values[choice.index] += choice.logprobs.token_logprobs or []
    for index, found in enumerate(whole.choices):
        assert found.logprobs is not None
        assert (texts[index], tokens[index]) == (found.text, found.logprobs.tokens)
        assert values[index] == pytest.approx(found.logprobs.token_logprobs, abs=1e-3)
    scored = [chunk.choices[0] for chunk in client.create(**request | {"max_tokens": 0, "n": 1}, stream=True)]
    assert {choice.finish_reason for choice in scored} == {None, "length"}


def test_a_lane_that_cannot_score_prompts_says_so(generator_server: ServerProcess) -> None:
    body = {"model": "small", "prompt": "w10", "echo": True, "logprobs": 1}
    status, error = post(generator_server, "/v1/completions", json.dumps(body).encode())
    assert (status, error["code"]) == (400, "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="set echo"):
        generator_server.client.completions.create(model="small", prompt="w10", max_tokens=0)
    echoed = generator_server.client.completions.create(model="small", prompt="w10", max_tokens=0, echo=True)
    assert (echoed.choices[0].text, echoed.choices[0].finish_reason) == ("w10", "length")
