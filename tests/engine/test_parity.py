"""The batched lane gives PEFT's tokens, whoever joins, leaves or is cancelled beside a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.messages import Submit
from tests.checkpoints import Family
from tests.engine.lanes import GREEDY, Answer, Model, batched, generator, run

ADAPTERS = (None, "four", "nine", "some")
COUNT = 20
_random = np.random.default_rng(5)
# The second begins like the first, the fourth like the third, so that KV is taken over; the last is far longer.
_long = [int(token) for token in _random.integers(8, 150, 90)]
PROMPTS: list[tuple[int, ...]] = [
    tuple(_long[:21]),
    (*_long[:18], 12, 13),
    tuple(_long[30:33]),
    tuple(_long[30:52]),
    (9,),
    tuple(_long),
]

plans = st.lists(
    st.tuples(
        st.sampled_from(ADAPTERS),
        st.integers(0, len(PROMPTS) - 1),
        st.integers(1, COUNT),
        st.integers(0, 30),  # step at which it comes
        st.none() | st.integers(0, 40),  # step at which it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def lane(llama: Model) -> BatchedLane:
    """One lane for every example, so that each finds what the last left behind."""
    return batched(llama)


def play(lane: Any, plan: list[tuple[str | None, int, int, int, int | None]]) -> dict[int, Answer]:
    """Carry out a plan; the answers by place in it."""
    answers = {index: Answer() for index in range(len(plan))}
    step = 0
    while lane.busy or step <= 40:
        for index, (adapter, prompt, count, comes, goes) in enumerate(plan):
            if comes == step:
                lane.submit(Submit(index, adapter, list(PROMPTS[prompt]), count, GREEDY))
            if goes == step:
                lane.cancel(index)
        for output in lane.step():
            answers[output.sequence].add(output)
        step += 1
    return answers


@given(plan=plans)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_joins_leaves_and_cancels_leave_every_answer_as_it_is(
    plan: list[tuple[str | None, int, int, int, int | None]], llama: Model, lane: BatchedLane
) -> None:
    for (adapter, prompt, count, _, cancelled), answer in zip(plan, play(lane, plan).values(), strict=True):
        expected = llama.expected(adapter, PROMPTS[prompt], COUNT)[:count]
        assert answer.error is None
        if cancelled is None:
            assert answer.tokens == expected
            assert answer.finish == ("stop" if expected[-1] == 1 else "length")
        else:
            assert answer.tokens == expected[: len(answer.tokens)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_a_mixed_batch_answers_like_peft_and_like_the_generator_lane(
    models: dict[Family, Model], family: Family
) -> None:
    model = models[family]
    requests = [
        Submit(index, adapter, list(prompt), COUNT, GREEDY)
        for index, (prompt, adapter) in enumerate((p, a) for p in PROMPTS for a in ADAPTERS)
    ]
    answers = run(batched(model), requests)
    alone = generator(model)
    for request in requests:
        tokens = answers[request.sequence].tokens
        assert tokens == model.expected(request.adapter, tuple(request.prompt), COUNT)
        assert tokens == run(alone, [request])[request.sequence].tokens


def test_one_adapter_for_all_rows_is_shared_and_as_exact(llama: Model) -> None:
    lane = batched(llama)
    for adapter in ADAPTERS:
        answers = run(lane, [Submit(i, adapter, list(p), COUNT, GREEDY) for i, p in enumerate(PROMPTS)])
        for index, prompt in enumerate(PROMPTS):
            assert answers[index].tokens == llama.expected(adapter, prompt, COUNT)


def test_an_int4_answer_does_not_depend_on_its_company(int4: Model) -> None:
    lane = batched(int4)
    requests = [
        Submit(index, adapter, list(prompt), COUNT, GREEDY)
        for index, (prompt, adapter) in enumerate((p, a) for p in PROMPTS for a in ADAPTERS)
    ]
    together = run(lane, requests)
    for request in requests:
        assert run(lane, [request])[request.sequence].tokens == together[request.sequence].tokens


def test_an_unloaded_adapter_leaves_nothing_to_the_next_of_its_name(llama: Model) -> None:
    lane = batched(llama)
    prompt = PROMPTS[0]
    run(lane, [Submit(0, "four", list(prompt), COUNT, GREEDY)])
    folder = llama.bundle.adapter("nine")
    from loraplex.server.engine.adapter_file import check_adapter

    lane.unload_adapter("four")
    refused = run(lane, [Submit(2, "four", list(prompt), COUNT, GREEDY)])[2]
    assert refused.error == "adapter 'four' is not loaded"
    lane.load_adapter("four", folder, check_adapter(folder, llama.bundle.manifest.base))
    answer = run(lane, [Submit(1, "four", list(prompt), COUNT, GREEDY)])[1]
    assert answer.tokens == llama.expected("nine", prompt, COUNT)
    assert answer.cached == 0
