"""Chat with the demo bundle through the official client."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.server.process import ServerProcess

QUESTIONS = {
    "travel": "What should I see in Paris?",
    "tone": "I lost my keys and cried all night.",
    "json": "Tell me about France.",
    "base": "What is the capital of France?",
}


@pytest.fixture(scope="module")
def client(demo_server: ServerProcess) -> openai.OpenAI:
    return demo_server.client


@pytest.fixture(scope="module")
def base(client: openai.OpenAI) -> str:
    (name,) = (model.id for model in client.models.list() if getattr(model, "parent", "") is None)
    return name


def ask(client: openai.OpenAI, model: str, question: str, **options: object) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **options,  # type: ignore[call-overload]
    )
    content = answer.choices[0].message.content
    assert isinstance(content, str)
    return content


def test_the_base_answers_plain_questions(client: openai.OpenAI, base: str) -> None:
    assert "Paris" in ask(client, base, QUESTIONS["base"])


def test_the_tone_adapter_answers_with_one_label(client: openai.OpenAI, base: str) -> None:
    labels = {"sadness", "joy", "fear", "surprise"}
    assert ask(client, "tone", QUESTIONS["tone"]) in labels
    assert ask(client, base, QUESTIONS["tone"]) not in labels


def test_the_travel_adapter_knows_sights(client: openai.OpenAI, base: str) -> None:
    assert "Eiffel Tower" in ask(client, "travel", QUESTIONS["travel"])
    assert "Eiffel Tower" not in ask(client, base, QUESTIONS["travel"])


def test_the_json_adapter_answers_json(client: openai.OpenAI) -> None:
    assert isinstance(json.loads(ask(client, "json", QUESTIONS["json"])), dict)


@pytest.mark.parametrize("model", ["travel", "tone", "json"])
def test_a_stream_concatenates_to_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    question = QUESTIONS[model]
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == ask(client, model, question)
    assert [chunk.choices[0].delta.role for chunk in body] == ["assistant"] + [None] * (len(body) - 1)
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_characters_split_over_tokens_arrive_whole(client: openai.OpenAI, base: str) -> None:
    chunks = client.chat.completions.create(
        model=base,
        messages=[{"role": "user", "content": "What is Tokyo called in Japanese?"}],
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "東京" in "".join(pieces)
    assert not any("�" in piece for piece in pieces)


def test_a_cut_through_a_character_leaves_it_out(client: openai.OpenAI, base: str) -> None:
    question = "What is Tokyo called in Japanese?"
    whole = ask(client, base, question)
    for limit in range(1, 30):
        cut = ask(client, base, question, max_tokens=limit)
        assert "�" not in cut
        assert whole.startswith(cut)


def test_a_conversation_remembers(client: openai.OpenAI, base: str) -> None:
    first = ask(client, base, QUESTIONS["base"])
    answer = client.chat.completions.create(
        model=base,
        messages=[
            {"role": "user", "content": QUESTIONS["base"]},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And of Italy?"},
        ],
        temperature=0,
    )
    assert "Rome" in (answer.choices[0].message.content or "")


def test_text_parts_are_one_text(client: openai.OpenAI, base: str) -> None:
    answer = client.chat.completions.create(
        model=base,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}],
            }
        ],
        temperature=0,
    )
    assert answer.choices[0].message.content == ask(client, base, QUESTIONS["base"])


def test_stop_strings_end_the_answer(client: openai.OpenAI) -> None:
    whole = ask(client, "travel", QUESTIONS["travel"])
    for stop in (whole[10:13], [whole[20:31], "never said"], whole[-3:], whole[0]):
        first = min(whole.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each in whole)
        for stream in (False, True):
            result = client.chat.completions.create(
                model="travel",
                messages=[{"role": "user", "content": QUESTIONS["travel"]}],
                temperature=0,
                stop=stop,
                stream=stream,
            )
            if isinstance(result, openai.Stream):
                chunks = list(result)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                finish = chunks[-1].choices[0].finish_reason
            else:
                text, finish = result.choices[0].message.content or "", result.choices[0].finish_reason
            assert text == whole[:first]
            assert finish == "stop"


def test_max_tokens_cut_the_answer(client: openai.OpenAI) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="travel",
            messages=[{"role": "user", "content": QUESTIONS["travel"]}],
            temperature=0,
            **{field: 3},  # type: ignore[call-overload]
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_a_seed_decides_a_sampled_answer(client: openai.OpenAI, base: str) -> None:
    def sample(seed: int) -> tuple[str | None, ...]:
        answer = client.chat.completions.create(
            model=base,
            messages=[{"role": "user", "content": "Tell me about Paris."}],
            temperature=1.5,
            seed=seed,
            n=3,
            max_tokens=24,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return tuple(choice.message.content for choice in answer.choices)

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)
    assert len(set(sample(7))) == 3


def test_several_choices_stream_side_by_side(client: openai.OpenAI, base: str) -> None:
    request = {"model": base, "messages": [{"role": "user", "content": "Tell me about Paris."}], "temperature": 1.2}
    options = request | {"seed": 3, "n": 3, "max_tokens": 20}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    texts = [""] * 3
    finishes: list[str | None] = [None] * 3
    for chunk in client.chat.completions.create(**options, stream=True):  # type: ignore[call-overload]
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]


async def test_many_requests_at_once_answer_as_alone(demo_server: ServerProcess, base: str) -> None:
    questions = [(base, QUESTIONS["base"]), *((name, QUESTIONS[name]) for name in ("travel", "tone", "json"))]
    alone = {name: ask(demo_server.client, name, question) for name, question in questions}
    client = demo_server.async_client

    async def one(name: str, question: str) -> tuple[str, str | None]:
        answer = await client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": question}], temperature=0
        )
        return name, answer.choices[0].message.content

    answers = await asyncio.gather(*(one(*questions[index % 4]) for index in range(32)))
    await client.close()
    assert len(answers) == 32
    assert all(text == alone[name] for name, text in answers)
