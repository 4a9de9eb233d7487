"""What the lane keeps, for whom, and how much of it."""

from __future__ import annotations

import errno
import mmap
import sys

import numpy as np
import psutil
import pytest

from loraplex.server.engine import kv_cache
from loraplex.server.engine.kv_cache import KvCache, Part
from loraplex.server.engine.messages import Submit
from loraplex.server.engine.row_adapters import Adapter
from tests.engine.lanes import GREEDY, Answer, Model, ask, batched, run

TOKEN = 2 * 2 * 2 * 16 * 4
"""Bytes of KV of one token: two layers, keys and values, two heads of 16 float32."""
_random = np.random.default_rng(11)
LONG = [int(token) for token in _random.integers(8, 150, 60)]


def test_a_conversation_that_comes_back_is_not_computed_again(llama: Model) -> None:
    lane = batched(llama)
    first = ask(lane, LONG, "four", 10)
    assert first.cached == 0
    history = [*LONG, *first.tokens]
    again = ask(lane, [*history, 9, 10, 11], "four", 10)
    assert again.cached == len(history) - 1  # the last token of an answer is never computed
    assert again.tokens == llama.expected("four", (*history, 9, 10, 11), 10)


def test_the_same_prompt_again_computes_its_last_token(llama: Model) -> None:
    lane = batched(llama)
    assert ask(lane, LONG).tokens == (again := ask(lane, LONG)).tokens
    assert again.cached == len(LONG) - 1


def test_a_prefix_is_taken_from_a_sequence_that_still_runs(llama: Model) -> None:
    lane = batched(llama)
    answers = run(lane, [Submit(index, "nine", LONG, 12, GREEDY) for index in range(3)])
    assert [answers[index].cached for index in range(3)] == [0, len(LONG) - 1, len(LONG) - 1]
    for answer in answers.values():
        assert answer.tokens == llama.expected("nine", tuple(LONG), 12)


@pytest.mark.parametrize("owner", [None, "four"])
def test_never_across_adapters(owner: str | None, llama: Model) -> None:
    lane = batched(llama)
    ask(lane, LONG, owner)
    for other in (None, "four", "nine", "some"):
        if other != owner:
            answer = ask(lane, LONG, other, 10)
            assert answer.cached == 0
            assert answer.tokens == llama.expected(other, tuple(LONG), 10)


def test_the_least_recently_used_conversation_goes_first(llama: Model) -> None:
    lane = batched(llama, kv_bytes=250 * TOKEN)
    prompts = [[10 + index, *LONG[1:]] for index in range(4)]
    for prompt in prompts[:3]:
        ask(lane, prompt, max_tokens=10)
    assert ask(lane, prompts[0], max_tokens=1).cached == len(LONG) - 1
    ask(lane, prompts[3], max_tokens=10)
    assert ask(lane, prompts[1], max_tokens=1).cached == 0
    assert ask(lane, prompts[0], max_tokens=1).cached == len(LONG) - 1


def test_what_can_never_fit_is_refused_and_the_rest_waits_its_turn(llama: Model) -> None:
    lane = batched(llama, kv_bytes=200 * TOKEN)
    requests = [Submit(index, [None, "four"][index % 2], LONG, 30, GREEDY) for index in range(6)]
    answers = run(lane, [*requests, Submit(9, None, LONG, 141, GREEDY)])
    assert "201 tokens" in (answers[9].error or "")
    assert "200" in (answers[9].error or "")
    for request in requests:
        assert answers[request.sequence].tokens == llama.expected(request.adapter, tuple(LONG), 30)


def test_an_answer_may_be_longer_than_the_first_buffer(llama: Model) -> None:
    lane = batched(llama)
    short = Submit(0, "some", LONG[:5], 40, GREEDY)
    long = Submit(1, "four", [int(t) for t in np.random.default_rng(1).integers(8, 150, 230)], 20, GREEDY)
    longest = Submit(2, None, [int(t) for t in np.random.default_rng(2).integers(8, 150, 240)], 16, GREEDY)
    answers = {short.sequence: Answer()}
    lane.submit(short)
    for _ in range(10):
        for output in lane.step():
            answers[output.sequence].add(output)
    for request in (long, longest):  # the buffers grow under the first one
        answers[request.sequence] = Answer()
        lane.submit(request)
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    for request in (short, long, longest):
        expected = llama.expected(request.adapter, tuple(request.prompt), request.max_tokens)
        assert answers[request.sequence].tokens == expected


def test_want_of_memory_ends_one_sequence_alone(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = batched(llama)
    runs, bigger = Submit(1, "four", LONG, 12, GREEDY), Submit(2, None, LONG, 12, GREEDY)
    lane.submit(runs)
    outputs = lane.step()
    left = [3]

    def allocate(shape: tuple[int, ...]) -> tuple[mmap.mmap, kv_cache.Buffer]:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return given(shape)

    given = kv_cache.allocate
    monkeypatch.setattr(kv_cache, "allocate", allocate)
    lane.submit(bigger)
    while lane.busy:
        outputs += lane.step()
    (failed,) = [output for output in outputs if output.sequence == 2]
    assert "no memory for the KV cache" in str(failed.error)
    tokens = [token for output in outputs if output.sequence == 1 for token in output.tokens]
    assert tokens == llama.expected("four", tuple(LONG), 12)
    left[0] = 1000
    answers = run(lane, [runs, bigger])
    assert answers[1].tokens == tokens
    assert answers[2].tokens == llama.expected(None, tuple(LONG), 12)


def test_memory_comes_back(llama: Model) -> None:
    lane = batched(llama, kv_bytes=4096 * TOKEN)
    requests = [Submit(index, ["nine", None][index % 2], LONG, 30, GREEDY) for index in range(16)]
    run(lane, requests)
    before = psutil.Process().memory_info().rss
    for _ in range(10):
        run(lane, requests)
    assert psutil.Process().memory_info().rss - before < 8 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")
def test_a_row_that_is_released_holds_no_memory() -> None:
    kv = KvCache([Part("past", "present", 2, 64)])
    kv.reserve(4, 8192)  # a row of megabytes: the system counts pages in bunches
    (rows,) = kv._buffers
    rows[:3] = 1
    before = psutil.Process().memory_info()
    kv.release(1)
    after = psutil.Process().memory_info()
    assert before.rss - after.rss >= rows[1].nbytes * 0.9
    assert before.shared - after.shared < rows[1].nbytes * 0.1
    assert not rows[1].any()
    assert rows[0].all()
    assert rows[2].all()
    kv.release_all()
    assert not rows.any()


def test_an_adapter_is_mapped_not_copied(llama: Model) -> None:
    folder = llama.bundle.adapter("four")
    adapter = Adapter("four", folder / "four.onnx_adapter")
    assert adapter.rank("model.layers.0.attn.q_proj") == 4
    assert adapter.rank("model.layers.0.attn.unknown") == 0
    assert not any(weight.flags.owndata for weight in adapter.weights.values())
