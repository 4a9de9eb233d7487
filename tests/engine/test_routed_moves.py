"""Sequences that go on in another engine when the set of adapters changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.routed_engine import RoutedEngine
from loraplex.server.engine.routed_sequence import Sequence
from tests.engine.lanes import GREEDY, Answer, Model, ask
from tests.engine.routed_lane import PROMPTS, fail_once, load, routed


def test_running_sequences_move_where_an_old_engine_does_not_drain(llama: Model, cache: Path) -> None:
    """With no time to drain, sequences go on in the next engine from what they have generated."""
    lane = routed(llama, cache, "four", max_linked=2, drain_seconds=0.0)
    long = Submit(0, "four", [0, 8, 9], 120, Sampling(temperature=0, ignore_eos=True))
    lane.submit(long)
    tokens: list[int] = []
    names = iter(("nine", "some", "nine", "some"))
    number = 1
    while lane.busy:
        for output in lane.step():
            assert output.error is None
            if output.sequence == 0:
                tokens += output.tokens
        if len(tokens) >= 20 * number and (name := next(names, None)):
            load(lane, llama, name)
            lane.submit(Submit(number, name, list(PROMPTS[1]), 4, GREEDY))
            number += 1
    assert number == 5
    whole = routed(llama, cache, "four")
    assert tokens == ask(whole, [0, 8, 9], "four", 120, sampling=Sampling(temperature=0, ignore_eos=True)).tokens


SEEDED = Sampling(seed=3, seed_given=True, ignore_eos=True)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each sequence begins in an engine, or goes on in another."""
    counts: Counter[int] = Counter()
    begin = RoutedEngine._begin

    def counted(engine: RoutedEngine, sequence: Sequence) -> None:
        counts[sequence.request.sequence] += 1
        begin(engine, sequence)

    monkeypatch.setattr(RoutedEngine, "_begin", counted)
    return counts


def test_an_answer_with_a_seed_does_not_move(llama: Model, cache: Path, begun: Counter[int]) -> None:
    """It would draw other tokens. What waits for another engine waits for it, as for no other."""
    lane = routed(llama, cache, "four", max_linked=1, drain_seconds=0.0)
    for number, sampling in enumerate((SEEDED, Sampling(temperature=0, ignore_eos=True))):
        lane.submit(Submit(number, "four", [0, 8, 9], 120, sampling))
    answers = {number: Answer() for number in range(4)}
    later = iter(("nine", "some"))
    number = 2
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
        if len(answers[0].tokens) >= 20 * (number - 1) and (name := next(later, None)):
            load(lane, llama, name)
            lane.submit(Submit(number, name, list(PROMPTS[1]), 4, GREEDY))
            number += 1
    assert [answer.error for answer in answers.values()] == [None] * 4
    assert [len(answer.tokens) for answer in answers.values()][:2] == [120, 120]
    assert begun[0] == 1
    assert begun[1] > 1


def test_without_memory_for_two_engines_even_an_answer_with_a_seed_moves(
    llama: Model, cache: Path, begun: Counter[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane = routed(llama, cache, "four", max_linked=1)
    lane.submit(Submit(0, "four", [0, 8, 9], 120, SEEDED))
    answer = Answer()
    while not answer.tokens:
        for output in lane.step():
            answer.add(output)
    fail_once(monkeypatch)
    load(lane, llama, "nine")
    lane.submit(Submit(1, "nine", list(PROMPTS[1]), 4, GREEDY))
    answers = {0: answer, 1: Answer()}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    assert [len(each.tokens) for each in answers.values()] == [120, 4]
    assert begun[0] == 2
    assert "1 answers with a seed go on with other tokens" in caplog.text
