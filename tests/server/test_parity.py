"""The server gives the tokens that PEFT gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import quiet, reference_tokens
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving

EOS = 1
FIRST_WORD = 8
"""Ids below are special tokens, which have no text."""
PROMPTS = ([10, 20, 30], [99, 8, 64, 64, 41, 150, 12, 77, 31], [23])


def text(tokens: list[int]) -> str:
    """What a client sees of these tokens."""
    if EOS in tokens:
        tokens = tokens[: tokens.index(EOS)]
    return "".join(f" w{token}" for token in tokens if token >= FIRST_WORD)


@pytest.mark.parametrize("name", ["tiny", "small", "middle", "large", "partial"])
def test_greedy_answers_equal_peft(
    tiny: TinyBundle, generator_server: ServerProcess, batched_server: ServerProcess, name: str
) -> None:
    adapter: Path | None = tiny.adapters.get(name)
    for prompt in PROMPTS:
        expected = text(reference_tokens(tiny.checkpoint, adapter, prompt, 24))
        for server in (generator_server, batched_server):
            answer = server.client.completions.create(model=name, prompt=prompt, max_tokens=24, temperature=0)
            assert answer.choices[0].text.strip() == expected.strip()


def test_adapters_answer_differently(tiny_server: ServerProcess) -> None:
    answers = {
        tiny_server.client.completions.create(model=name, prompt=PROMPTS[1], max_tokens=24, temperature=0)
        .choices[0]
        .text
        for name in ("tiny", "small", "middle", "large", "partial")
    }
    assert len(answers) == 5


def test_a_prompt_in_chunks_gives_the_same_answer(tiny: TinyBundle, tiny_server: ServerProcess, tmp_path: Path) -> None:
    prompt = [FIRST_WORD + (i * 37) % 150 for i in range(100)]
    with serving(tiny.folder, tmp_path / "log", "--prefill-chunk", "7") as chunked:
        answers = [
            server.client.completions.create(model="middle", prompt=prompt, max_tokens=16, temperature=0)
            .choices[0]
            .text
            for server in (tiny_server, chunked)
        ]
    assert answers[0] == answers[1]
    assert answers[0].strip() == text(reference_tokens(tiny.checkpoint, tiny.adapters["middle"], prompt, 16)).strip()


def test_a_repetition_penalty_equals_transformers(tiny: TinyBundle, tiny_server: ServerProcess) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    answers = []
    for penalty in (1.0, 1.3, 1.9):
        config = GenerationConfig(
            max_new_tokens=24, do_sample=False, repetition_penalty=penalty, eos_token_id=EOS, pad_token_id=2
        )
        with quiet():
            ids = model.generate(torch.tensor([PROMPTS[1]]), generation_config=config)
        answer = tiny_server.client.completions.create(
            model="tiny",
            prompt=PROMPTS[1],
            max_tokens=24,
            temperature=0,
            extra_body={"repetition_penalty": penalty},
        )
        assert answer.choices[0].text.strip() == text(ids[0, len(PROMPTS[1]) :].tolist()).strip()
        answers.append(answer.choices[0].text)
    assert len(set(answers)) > 1
