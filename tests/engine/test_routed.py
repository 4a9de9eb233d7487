"""The routed lane gives PEFT's tokens, and says what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex.server.engine import lane_beside
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.messages import Sampling
from tests.checkpoints import Family
from tests.engine.lanes import Answer, Model, ask, batched, generator, run
from tests.engine.routed_lane import ADAPTERS, COUNT, PROMPTS, check, requests, routed


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_mixed_batch(family: Family, models: dict[Family, Model], cache: Path) -> None:
    lane = routed(models[family], cache)
    asked = requests()
    check(models[family], run(lane, asked), asked)
    # Again, on an engine that has seen the same prompts under other adapters.
    turned = requests((*ADAPTERS[1:], None), start=10)
    check(models[family], run(lane, turned), turned)
    assert lane.linked == {"four", "nine", "some"}
    assert not lane.busy


@pytest.mark.parametrize("prompt", [[], [160], [-1], [0, 2**31 - 1], [160 * 2]])
def test_ids_out_of_range_are_refused(llama: Model, cache: Path, prompt: list[int]) -> None:
    """Anything from the vocabulary's size on would choose an adapter."""
    lane = routed(llama, cache)
    assert "out of range" in (ask(lane, prompt).error or "")


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=-1), Sampling(top_p=1.5), Sampling(repetition_penalty=0), Sampling(logprobs=0)]
)
def test_sampling_that_cannot_be(llama: Model, cache: Path, sampling: Sampling) -> None:
    lane = routed(llama, cache)
    answer = ask(lane, PROMPTS[0], sampling=sampling)
    assert answer.error
    assert answer.tokens == []
    check(llama, run(lane, requests()), requests())


def test_sampling_options(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache)
    expected = llama.expected("nine", PROMPTS[0], COUNT)
    stopped = ask(lane, PROMPTS[0], "nine", COUNT, sampling=Sampling(temperature=0, stop_tokens=[expected[4]]))
    assert stopped.tokens == expected[: expected.index(expected[4]) + 1]
    assert stopped.finish == "stop"
    ones = ask(lane, PROMPTS[0], "nine", COUNT, sampling=Sampling(temperature=0.7, top_k=1))
    assert ones.tokens == expected
    few = ask(lane, PROMPTS[0], "nine", 40, sampling=Sampling(temperature=5.0, top_k=10_000, ignore_eos=True))
    assert len(few.tokens) == 40
    assert max(few.tokens) < llama.bundle.manifest.base.vocab_size, "a tag was sampled"


def test_repetition_penalty_is_that_of_the_generator_lane(llama: Model, cache: Path) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=1.3)
    lane, other = routed(llama, cache), generator(llama)
    for adapter in ADAPTERS:
        expected = ask(other, PROMPTS[0], adapter, COUNT, sampling=sampling).tokens
        assert ask(lane, PROMPTS[0], adapter, COUNT, sampling=sampling).tokens == expected


def test_fallback_takes_what_is_cold_or_beyond_the_engine(llama: Model, cache: Path) -> None:
    other = batched(llama)
    lane = routed(llama, cache, fallback=lambda: other)
    assert not lane.unsupported
    asked = requests()
    for request in asked:
        lane.submit(request)
    assert other.busy, "nothing is linked yet, so the other lane answers"
    answers = {request.sequence: Answer() for request in asked}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    check(llama, answers, asked)
    for request in asked:
        lane.submit(request)
    assert not other.busy
    while lane.busy:
        lane.step()
    answer = ask(lane, PROMPTS[0], "nine", 4, sampling=Sampling(temperature=0, logprobs=2))
    assert [len(each.top) for each in answer.logprobs] == [2] * 4
    assert answer.tokens == llama.expected("nine", PROMPTS[0], COUNT)[:4]


def test_what_another_lane_answers_for_is_linked_in_turn(
    llama: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_beside, "RELINK_SECONDS", 0.0)
    other = batched(llama)
    lane = routed(llama, cache, "four", "nine", max_linked=1, fallback=lambda: other)
    for name in ("four", "nine", "four"):
        check(llama, run(lane, requests((name,))), requests((name,)))
        assert lane.linked == {name}
    monkeypatch.setattr(lane_beside, "RELINK_SECONDS", 1e6)
    check(llama, run(lane, requests(("nine",))), requests(("nine",)))
    assert lane.linked == {"four"}, "at each request would be too often"


def test_no_memory_for_a_fallback(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, fallback=lambda: None)
    answer = ask(lane, PROMPTS[0], "nine", 4, sampling=Sampling(temperature=0, logprobs=2))
    assert answer.error == "there is no memory for an engine that has logprobs"
    check(llama, run(lane, requests()), requests())


def test_a_fallback_that_found_no_memory_is_tried_again_later(
    llama: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each request: what runs waits for each try."""
    tries: list[BatchedLane | None] = []

    def no_memory_at_first() -> BatchedLane | None:
        tries.append(batched(llama) if tries else None)
        return tries[-1]

    monkeypatch.setattr(lane_beside, "RETRY_SECONDS", 1e6)
    lane = routed(llama, cache, fallback=no_memory_at_first)
    reported = Sampling(temperature=0, logprobs=2)
    for _ in range(3):
        assert "no memory" in (ask(lane, PROMPTS[0], "nine", 4, sampling=reported).error or "")
    assert tries == [None]
    lane._fallback._again = 0.0
    for _ in range(2):
        assert ask(lane, PROMPTS[0], "nine", 4, sampling=reported).error is None
    assert len(tries) == 2
