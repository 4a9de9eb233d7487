"""The routed lane gives PEFT's tokens, whatever happens to the set of adapters meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.residency import choose
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions, RoutedEngine
from loraplex.server.engine.routed_sequence import Sequence
from loraplex.server.engine.slots import Adapter, Slots
from tests.checkpoints import Family
from tests.engine.lanes import GREEDY, Answer, Model, ask, batched, generator, run

ADAPTERS = (None, "four", "nine", "some")
PROMPTS: list[tuple[int, ...]] = [
    (0, *(8 + 7 * position % 150 for position in range(20))),
    (0, *(8 + 7 * position % 150 for position in range(11))),
    (33, 12),
    (0, *(8 + 11 * position % 150 for position in range(60))),
]
COUNT = 16


def routed(model: Model, cache: Path, *names: str, **options: Any) -> RoutedLane:
    """A lane on the CPU with these adapters, all where none is named."""
    options = {"options": EngineOptions(max_batch_size=8)} | options
    lane = RoutedLane(model.bundle.variant("generator"), device="cpu", threads=1, cache=cache, **options)
    load(lane, model, *(names or model.peft))
    return lane


def load(lane: RoutedLane, model: Model, *names: str) -> None:
    for name in names:
        folder = model.bundle.adapter(name)
        lane.load_adapter(name, folder, check_adapter(folder, model.bundle.manifest.base))


def requests(adapters: tuple[str | None, ...] = ADAPTERS, start: int = 0) -> list[Submit]:
    return [
        Submit(start + index, adapter, list(PROMPTS[index % len(PROMPTS)]), COUNT, GREEDY)
        for index, adapter in enumerate(adapters)
    ]


def check(model: Model, answers: dict[int, Answer], asked: list[Submit]) -> None:
    for request in asked:
        answer = answers[request.sequence]
        expected = model.expected(request.adapter, tuple(request.prompt), request.max_tokens)
        assert answer.error is None
        assert answer.tokens == expected, (request.sequence, request.adapter)
        assert answer.finish == ("stop" if expected[-1] == 1 else "length")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests, as by the lanes of a server that is started again."""
    return tmp_path_factory.mktemp("cache")


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


def test_adapters_come_while_sequences_run(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, "four")
    asked = requests((None, "four", "four"))
    for request in asked:
        lane.submit(request)
    answers = {request.sequence: Answer() for request in asked}
    while not any(answer.tokens for answer in answers.values()):
        for output in lane.step():
            answers[output.sequence].add(output)
    load(lane, llama, "nine", "some")
    late = requests(("nine", "some", "four", None), start=10)
    answers |= {request.sequence: Answer() for request in late}
    for request in late:
        lane.submit(request)
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    check(llama, answers, [*asked, *late])
    assert lane.linked == {"four", "nine", "some"}


def test_more_adapters_than_room(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, max_linked=1, drain_seconds=0.0)
    asked = requests(("four", "nine", None, "some", "four", "nine", "some"))
    check(llama, run(lane, asked), asked)
    assert len(lane.linked) == 1


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
    init, full = RoutedEngine.__init__, [True]

    def no_room_for_two(*arguments: Any) -> None:
        if full.pop() if full else False:
            raise RuntimeError("out of memory")
        init(*arguments)

    monkeypatch.setattr(RoutedEngine, "__init__", no_room_for_two)
    load(lane, llama, "nine")
    lane.submit(Submit(1, "nine", list(PROMPTS[1]), 4, GREEDY))
    answers = {0: answer, 1: Answer()}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    assert [len(each.tokens) for each in answers.values()] == [120, 4]
    assert begun[0] == 2
    assert "1 answers with a seed go on with other tokens" in caplog.text


def test_cancel_and_unload(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache)
    asked = requests()
    answers = run(lane, asked, cancels={1: 3, 2: 0})
    check(llama, answers, [asked[0], asked[3]])
    assert answers[1].finish is None
    assert answers[2].tokens == []
    lane.unload_adapter("nine")
    assert ask(lane, PROMPTS[0], "nine").error == "there is no adapter 'nine'"
    assert lane.linked == {"four", "some"}


def test_unloaded_while_it_is_waited_for(llama: Model, cache: Path) -> None:
    """Who asked in time is answered."""
    lane = routed(llama, cache, "four", max_linked=1)
    run(lane, requests(("four",)))
    load(lane, llama, "nine")
    asked = requests(("nine",))
    lane.submit(asked[0])
    lane.unload_adapter("nine")
    answers = {0: Answer()}
    while lane.busy:
        for output in lane.step():
            answers[0].add(output)
    check(llama, answers, asked)
    assert ask(lane, PROMPTS[0], "nine").error == "there is no adapter 'nine'"


def test_replaced_adapter(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, "four", "nine")
    run(lane, requests(("four",)))
    folder = llama.bundle.adapter("some")
    lane.load_adapter("four", folder, check_adapter(folder, llama.bundle.manifest.base))
    answer = ask(lane, PROMPTS[0], "four", COUNT)
    assert answer.tokens == llama.expected("some", PROMPTS[0], COUNT)


def test_broken_adapter_fails_its_own_requests_only(llama: Model, cache: Path, tmp_path: Path) -> None:
    lane = routed(llama, cache, "four")
    run(lane, requests(("four",)))
    folder = llama.bundle.adapter("nine")
    manifest = check_adapter(folder, llama.bundle.manifest.base)
    (tmp_path / manifest.file).write_bytes(b"damaged after it was checked")
    lane.load_adapter("broken", tmp_path, manifest)
    answers = run(lane, [*requests(("broken",), start=5), *requests((None, "four"))])
    assert "cannot be linked" in (answers[5].error or "")
    check(llama, answers, requests((None, "four")))


def test_a_file_that_an_unload_takes_away_fails_nobody_else(llama: Model, cache: Path, tmp_path: Path) -> None:
    """The thread that links may come to it late."""
    lane = routed(llama, cache, "four")
    source = llama.bundle.adapter("nine")
    folder = Path(shutil.copytree(source, tmp_path / "gone"))
    lane.load_adapter("gone", folder, check_adapter(folder, llama.bundle.manifest.base))
    load(lane, llama, "some")
    asked = requests(("some", "four", None))
    for request in asked:
        lane.submit(request)
    lane.unload_adapter("gone")
    shutil.rmtree(folder)
    answers = {request.sequence: Answer() for request in asked}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    check(llama, answers, asked)


def test_who_unloads_an_adapter_learns_what_still_reads_it(
    llama: Model, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lane = routed(llama, cache, "four")
    folder = Path(shutil.copytree(llama.bundle.adapter("nine"), tmp_path / "going"))
    gate = threading.Event()
    lane._engines._linker.submit(gate.wait)  # a thread that is held up
    lane.load_adapter("going", folder, check_adapter(folder, llama.bundle.manifest.base))
    lane.step()
    reading = lane.unload_adapter("going")
    assert [each.done() for each in reading] == [False]
    gate.set()
    wait(reading)
    shutil.rmtree(folder)
    asked = requests(("four", None))
    check(llama, run(lane, asked), asked)
    assert not caplog.records
    assert lane.unload_adapter("four") == lane.unload_adapter("unknown") == []


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


def test_no_memory_for_a_fallback(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, fallback=lambda: None)
    answer = ask(lane, PROMPTS[0], "nine", 4, sampling=Sampling(temperature=0, logprobs=2))
    assert answer.error == "there is no memory for an engine that has logprobs"
    check(llama, run(lane, requests()), requests())


@given(
    count=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))), max_size=30),
)
def test_slots(count: int, steps: list[tuple[str, set[str]]]) -> None:
    """No number is ever given to two adapters, and no slot is taken from one that is busy."""
    slots = Slots(count, vocab_size=1000)
    adapters = {name: Adapter(name, Path(name), name, {}) for name in "abcdef"}
    given: dict[int, Adapter] = {}
    held: dict[Adapter, int] = {}
    used: dict[Adapter, int] = {}
    for time, (name, names) in enumerate(steps):
        adapter, busy = adapters[name], {adapters[other] for other in names} & set(slots.adapters)
        used[adapter] = time
        if adapter not in slots:
            before = set(slots.adapters)
            slot = slots.take(adapter, busy, used)
            assert (slot is None) == (len(before) == count and before <= busy)
            if slot is None:
                slots.promise(1)
                assert len(slots.leaving) == 1
                assert slots.leaving <= before
                continue
            assert busy <= set(slots.adapters)
            assert slot == slots.number(adapter) % (count + 1)
            if gone := before - set(slots.adapters):
                assert used[min(before - busy, key=used.__getitem__)] == used[gone.pop()], "not the least recently used"
            assert slots.number(adapter) not in given
            given[slots.number(adapter)] = adapter
            held[adapter] = slots.number(adapter)
        assert slots.number(adapter) == held[adapter]
    assert len({slots.number(adapter) % (count + 1) for adapter in slots.adapters}) == len(slots.adapters)
    assert all(number % (count + 1) > 0 for number in given)


def test_slots_fall_free_in_turn() -> None:
    """Who has been there longest leaves first, half of them at a time, until nobody waits any more."""
    a, b, c, d = (Adapter(name, Path(name), name, {}) for name in "abcd")
    slots, everyone = Slots(4, vocab_size=1000), {a, b, c, d}
    for adapter in (b, a, d, c):
        assert slots.take(adapter, (), {})
    slots.promise(3, now=1.0)
    assert slots.leaving == {a, b}
    slots.promise(3, now=2.0)
    assert slots.overdue(0.5) == []
    assert slots.overdue(1.0) == [b, a]
    new = Adapter("new", Path("new"), "new", {})
    assert slots.take(new, everyone - {b}, {})
    slots.promise(1, now=3.0)
    assert slots.leaving == {a}
    slots.promise(2, now=4.0)
    assert slots.leaving == {a, d}
    assert slots.overdue(1.0) == [a]
    slots.promise(0, now=5.0)
    assert slots.leaving == set()


def test_numbers_run_out() -> None:
    slots = Slots(1, vocab_size=2**28)  # eight numbers, two of them at a time for one slot
    adapters = [Adapter(str(index), Path(str(index)), "", {}) for index in range(8)]
    taken = [adapter for adapter in adapters if slots.take(adapter, (), {})]
    assert 2 <= len(taken) < 5
    assert slots.worn_out
    assert all(slots.number(adapter) * 2**28 < 2**31 for adapter in slots.adapters)


@given(
    known=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 99)),
    linked=st.sets(st.sampled_from("abcdefghij")),
    wanted=st.lists(st.sampled_from("abcdefgh")),
    capacity=st.integers(1, 5),
)
def test_residency(known: dict[str, int], linked: set[str], wanted: list[str], capacity: int) -> None:
    linked = set(sorted(linked)[:capacity])
    chosen = choose(known, linked, wanted, capacity)
    waiting = [name for name in dict.fromkeys(wanted) if name in known and name not in linked]
    if chosen is None:
        assert not waiting
        assert len(linked & known.keys()) == min(capacity, len(known))
        return
    assert set(chosen) <= known.keys()
    assert len(chosen) == min(capacity, len(known))
    assert set(waiting[:capacity]) <= set(chosen), "those that waited longest come first"
    assert set(chosen) != linked, "nothing is linked for nothing"
    spare = set(chosen) - set(waiting)
    left = known.keys() - set(chosen)
    assert all(known[name] >= known[other] for name in spare for other in left - set(waiting))
