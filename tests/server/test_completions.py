"""Plain completions, where every token has a text of its own."""

from __future__ import annotations

from tests.server.process import ServerProcess


def test_text_and_its_token_ids_are_the_same_prompt(tiny_server: ServerProcess) -> None:
    client = tiny_server.client
    text = client.completions.create(model="middle", prompt="w10 w11 w12", max_tokens=8, temperature=0)
    ids = client.completions.create(model="middle", prompt=[0, 10, 11, 12], max_tokens=8, temperature=0)
    assert text.choices[0].text == ids.choices[0].text
    assert text.usage == ids.usage
    assert text.usage is not None
    assert text.usage.prompt_tokens == 4
    assert text.usage.completion_tokens == 8


def test_several_prompts_are_answered_in_order(tiny_server: ServerProcess) -> None:
    client = tiny_server.client
    prompts = [[10, 11], [40, 41, 42], [77]]
    alone = [
        client.completions.create(model="small", prompt=prompt, max_tokens=6, temperature=0).choices[0].text
        for prompt in prompts
    ]
    together = client.completions.create(model="small", prompt=prompts, max_tokens=6, temperature=0, n=2)
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in range(2)]
    assert together.usage is not None
    assert together.usage.prompt_tokens == 6


def test_sixteen_tokens_are_the_default(tiny_server: ServerProcess) -> None:
    answer = tiny_server.client.completions.create(model="tiny", prompt=[10], temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16


def test_a_stream_concatenates_to_the_whole_answer(tiny_server: ServerProcess) -> None:
    client = tiny_server.client
    whole = client.completions.create(model="large", prompt=[10, 20], max_tokens=32, temperature=0)
    chunks = list(client.completions.create(model="large", prompt=[10, 20], max_tokens=32, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_top_k_one_is_greedy(tiny_server: ServerProcess) -> None:
    client = tiny_server.client
    greedy = client.completions.create(model="tiny", prompt=[10, 20], max_tokens=16, temperature=0)
    top = client.completions.create(
        model="tiny", prompt=[10, 20], max_tokens=16, temperature=2, extra_body={"top_k": 1}
    )
    nucleus = client.completions.create(model="tiny", prompt=[10, 20], max_tokens=16, temperature=2, top_p=1e-6)
    assert greedy.choices[0].text == top.choices[0].text == nucleus.choices[0].text
