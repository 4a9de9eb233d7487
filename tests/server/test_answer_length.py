"""How long an answer may be: what a request asks for is kept or refused, what it leaves open is cut to fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam

from tests.server.calls import call
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import ServerProcess, serving

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What should I see in Paris?"}]
NO_END = {"ignore_eos": True}


def total(usage: CompletionUsage | None) -> int:
    """Tokens of prompt and answer."""
    assert usage is not None
    return usage.total_tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo, with a KV cache that is smaller than its context and than --default-max-tokens."""
    log = tmp_path_factory.mktemp("log") / "small.log"
    with serving(DEMO, log, "--engine", "batched", "--kv-cache-mib", "1", "--dev") as found:
        yield found
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def room(server: ServerProcess) -> int:
    """Tokens that the KV cache has memory for."""
    _, text = server.get("/metrics")
    (line,) = (line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
    return int(line.partition('num_gpu_blocks="')[2].partition('"')[0])


def test_a_chat_that_sets_no_length_gets_what_the_kv_cache_has_room_for(server: ServerProcess, room: int) -> None:
    assert 100 < room < 1000
    answer = server.client.chat.completions.create(model="travel", messages=MESSAGES, extra_body=NO_END)
    assert answer.choices[0].finish_reason == "length"
    assert total(answer.usage) == room
    chunks = list(
        server.client.chat.completions.create(
            model="travel",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=NO_END,
        )
    )
    assert total(chunks[-1].usage) == room


def test_a_response_that_sets_no_length_is_answered(server: ServerProcess, room: int) -> None:
    answer = server.client.responses.create(model="travel", input="What should I see in Paris?")
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.total_tokens <= room


def test_a_completion_that_sets_no_length_gets_what_is_left(server: ServerProcess, room: int) -> None:
    answer = server.client.completions.create(model="travel", prompt=[5] * (room - 5), extra_body=NO_END)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_a_length_that_was_asked_for_is_refused_where_there_is_no_room(server: ServerProcess, room: int) -> None:
    with pytest.raises(openai.BadRequestError, match=f"the KV cache has memory for {room}: .* lower max_tokens"):
        server.client.chat.completions.create(model="travel", messages=MESSAGES, max_tokens=room)
    with pytest.raises(openai.BadRequestError, match=f"the KV cache has memory for {room}: .* lower max_tokens"):
        server.client.completions.create(model="travel", prompt=[5], max_tokens=room)


def test_a_prompt_without_room_for_one_token_is_refused(server: ServerProcess, room: int) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        server.client.completions.create(model="travel", prompt=[5] * room)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")
    assert f"The KV cache has memory for {room} tokens, but the prompt has {room} tokens" in refusal.value.message


def test_an_adapters_own_default_is_cut_too(server: ServerProcess, room: int, tiny: TinyBundle, tmp_path: Path) -> None:
    """To the KV cache, and to the context where that is shorter."""
    assert call(server, "PATCH", "/v1/adapters/json", {"sampling": {"max_tokens": 2000}})[0] == 200
    answer = server.client.chat.completions.create(model="json", messages=MESSAGES, extra_body=NO_END)
    assert total(answer.usage) == room
    with serving(tiny.folder, tmp_path / "log", "--dev") as other:
        assert call(other, "PATCH", "/v1/adapters/small", {"sampling": {"max_tokens": 250}})[0] == 200
        whole = other.client.completions.create(model="small", prompt=[10] * 50, extra_body=NO_END)
        assert total(whole.usage) == 256
        with pytest.raises(openai.BadRequestError, match="256 tokens, but 300 were requested"):
            other.client.completions.create(model="small", prompt=[10] * 50, max_tokens=250)
