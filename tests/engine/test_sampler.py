"""Sampling against plain reference implementations, and its independence of the batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.sampler import Chooser, choose
from tests.checkpoints import reference_logits
from tests.engine.lanes import EOS, Model, ask, batched, generator, run

MakeLane = Callable[[Model], Lane]
ENDS = frozenset({EOS})
PROMPT = [20, 33, 47, 20, 81]

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    top_k=st.sampled_from([0, 1, 5, 40, 500]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    presence_penalty=st.sampled_from([0.0, 0.9]),
    logit_bias=st.sampled_from([{}, {5: 3.0, 7: -100.0}]),
    seed=st.integers(0, 2**31 - 1),
)


def reference(logits: npt.NDArray[Any], sampling: Sampling, prompt: list[int], answer: list[int]) -> dict[int, float]:
    """The distribution that the next token is drawn from, one token at a time, from the definitions."""
    values = {token: float(value) for token, value in enumerate(logits)}
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    counts = Counter(answer)
    for token in {*prompt, *answer}:
        if values[token] > 0:
            values[token] /= sampling.repetition_penalty
        else:
            values[token] *= sampling.repetition_penalty
    for token, count in counts.items():
        values[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    if sampling.temperature == 0:
        return {max(values, key=lambda token: values[token]): 1.0}
    best = max(values.values())
    weights = {token: math.exp((value - best) / sampling.temperature) for token, value in values.items()}
    weights = {token: weight for token, weight in weights.items() if weight >= sampling.min_p}
    order = sorted(weights, key=lambda token: -weights[token])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if mass >= sampling.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    return {token: weights[token] / mass for token in kept}


def draws(logits: npt.NDArray[Any], chooser: Chooser, count: int) -> Iterator[int]:
    for _ in range(count):
        yield choose(logits[None].astype(np.float32), [chooser])[0].token


@given(sampling=samplings, seed=st.integers(0, 1000), answer=st.lists(st.integers(0, 59), max_size=12))
@settings(max_examples=150)
def test_tokens_come_from_the_reference_distribution(sampling: Sampling, seed: int, answer: list[int]) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 60)
    prompt = [1, 5, 9, 9]
    chooser = Chooser(sampling, prompt, ENDS, None)
    for token in answer:
        chooser.accept(token)
    expected = reference(logits.astype(np.float32), sampling, prompt, answer)
    count = 300
    drawn = Counter(draws(logits, chooser, count))
    for token, times in drawn.items():
        assert expected.get(token, 0) > 0, "a token outside the distribution"
        # Six standard deviations, and one for the small counts.
        assert abs(times - count * expected[token]) <= 6 * math.sqrt(count * expected[token]) + 1
    for token, probability in expected.items():
        assert drawn[token] > 0 or probability * count < 40


def test_the_nucleus_is_found_in_a_flat_distribution_too() -> None:
    logits = np.zeros(5000)
    logits[:10] = 14.0  # everything else lies farther below than what is tried first, but has a third of the mass
    sampling = Sampling(top_p=0.99, seed=3)
    share = 10 / (10 + 4990 * math.exp(-14))
    assert share > 0.99
    chooser = Chooser(sampling, [1], ENDS, None)
    assert {token < 10 for token in draws(logits, chooser, 200)} == {True}
    logits[:10] = 2.0
    assert any(token >= 10 for token in draws(logits, chooser, 50))


@pytest.mark.parametrize("make", [batched, generator])
def test_a_seed_gives_the_same_answer_whatever_else_is_in_the_batch(llama: Model, make: MakeLane) -> None:
    lane = make(llama)
    wanted = Sampling(temperature=1.2, top_p=0.95, seed=42, repetition_penalty=1.1)
    alone = ask(lane, PROMPT, "nine", 30, sampling=wanted)
    company = [
        Submit(index, adapter, [*PROMPT, 8 + index], 10 + index, Sampling(temperature=1, seed=index))
        for index, adapter in enumerate([None, "four", "some", "nine", None])
    ]
    together = run(lane, [*company[:3], Submit(9, "nine", PROMPT, 30, wanted), *company[3:]])
    assert together[9].tokens == alone.tokens
    assert ask(lane, PROMPT, "nine", 30, sampling=wanted).tokens == alone.tokens
    other = Sampling(temperature=1.2, top_p=0.95, seed=43, repetition_penalty=1.1)
    assert ask(lane, PROMPT, "nine", 30, sampling=other).tokens != alone.tokens


@pytest.mark.parametrize("make", [batched, generator])
def test_logprobs_are_those_of_the_unmodified_model(llama: Model, make: MakeLane) -> None:
    sampling = Sampling(temperature=0.8, seed=7, logit_bias={30: 5.0}, logprobs=4, presence_penalty=1)
    lane = make(llama)
    answer = ask(lane, PROMPT, "four", 8, sampling=sampling)
    logits = reference_logits(llama.checkpoint, llama.peft["four"], [*PROMPT, *answer.tokens]).astype(np.float64)
    for step, (token, found) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
        row = logits[len(PROMPT) - 1 + step]
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert found.chosen == pytest.approx(logprobs[token], abs=1e-4)
        best = np.argsort(-logprobs)[:4]
        assert [t for t, _ in found.top] == best.tolist()
        assert [v for _, v in found.top] == pytest.approx(logprobs[best], abs=1e-4)
    assert ask(lane, PROMPT, None, 2, sampling=Sampling(logprobs=0)).logprobs[0].top == []
    assert ask(lane, PROMPT, None, 2, sampling=Sampling()).logprobs == []


def test_both_lanes_choose_alike(llama: Model) -> None:
    """Where og.Generator does not choose itself."""
    lanes = batched(llama), generator(llama)
    for seed in range(6):
        sampling = Sampling(0.9, top_p=0.9, min_p=0.02, frequency_penalty=0.4, repetition_penalty=1.1, seed=seed)
        one, other = (ask(lane, PROMPT, "nine", 20, sampling=sampling) for lane in lanes)
        assert (one.tokens, one.finish) == (other.tokens, other.finish)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 100])
def test_logprobs_of_the_prompt(llama: Model, length: int) -> None:
    lane = batched(llama)
    prompt = np.random.default_rng(length).integers(2, 60, length).tolist()
    ask(lane, prompt, "nine", 4)  # leaves its KV behind, which a prompt with logprobs has no use for
    others = [Submit(index, name, [5, index], 9, Sampling()) for index, name in ((1, None), (2, "some"))]
    request = Submit(0, "nine", prompt, 4, Sampling(temperature=0, prompt_logprobs=3))
    answer = run(lane, [others[0], request, others[1]])[0]
    assert answer.cached == 0
    assert answer.tokens == ask(lane, prompt, "nine", 4).tokens
    logits = reference_logits(llama.checkpoint, llama.peft["nine"], prompt).astype(np.float64)
    assert answer.prompt_logprobs is not None
    for row, token, found in zip(logits[:-1], prompt[1:], answer.prompt_logprobs, strict=True):
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert found.chosen == pytest.approx(logprobs[token], abs=1e-4)
        best = np.argsort(-logprobs)[:3]
        assert [t for t, _ in found.top] == best.tolist()
        assert [v for _, v in found.top] == pytest.approx(logprobs[best], abs=1e-4)
    assert ask(lane, prompt, "nine", 4).prompt_logprobs is None


@pytest.mark.parametrize("make", [batched, generator])
def test_what_ends_an_answer(llama: Model, make: MakeLane) -> None:
    lane = make(llama)
    plain = Sampling(temperature=0, logit_bias={EOS: 100.0})
    assert ask(lane, PROMPT, sampling=plain).tokens == [EOS]
    later = Sampling(temperature=0, logit_bias={EOS: 100.0}, min_tokens=5)
    answer = ask(lane, PROMPT, sampling=later)
    assert len(answer.tokens) == 6
    assert answer.tokens[-1] == EOS
    assert EOS not in answer.tokens[:-1]
    never = Sampling(temperature=0, logit_bias={EOS: 100.0}, ignore_eos=True)
    answer = ask(lane, PROMPT, sampling=never, max_tokens=4)
    assert (answer.tokens, answer.finish) == ([EOS] * 4, "length")
    stop = Sampling(temperature=0, logit_bias={77: 100.0}, stop_tokens=[77])
    answer = ask(lane, PROMPT, sampling=stop)
    assert (answer.tokens, answer.finish) == ([77], "stop")


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 100.0])
def test_extreme_temperatures(temperature: float, llama: Model) -> None:
    lane = batched(llama)
    answer = ask(lane, PROMPT, sampling=Sampling(temperature=temperature, ignore_eos=True))
    assert len(answer.tokens) == 16
    if temperature < 1:
        assert answer.tokens == ask(lane, PROMPT, sampling=Sampling(temperature=0, ignore_eos=True)).tokens
