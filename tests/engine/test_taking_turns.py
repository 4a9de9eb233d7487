"""Adapters take turns at slots of which there are too few: nobody waits for longer than it takes to come round.

The operator needs a GPU, so the engine is scripted: a step takes 10 ms of a clock of its own and gives every running
sequence a token. All else, the lane and its slots, is real.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from loraplex.server.engine.lane_beside import LaneBeside
from loraplex.server.engine.messages import Output, Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import RoutedEngine
from loraplex.server.engine.routed_sequence import Sequence, seed
from loraplex.server.engine.slots import Adapter, Slots

STEP = 0.01
TURN = 1.0
SLOTS = 4
ADAPTERS = 8


class Engine:
    """A RoutedEngine without a model."""

    warming = cold = False

    def __init__(self, clock: list[float], slots: int, prefill: int) -> None:
        self.slots = Slots(slots, 1000)
        self.running: dict[int, Sequence] = {}
        self.linked = self.layout = self
        self.vocab_size = 1000
        self.clock = clock
        self.prefill = prefill
        """Steps before a sequence's first token, whenever it begins."""
        self.left: dict[int, int] = {}
        self.draws: dict[int, Random] = {}
        self.begun: Counter[int] = Counter()
        """How often each sequence began here, or went on."""

    def holds(self, *_: Any) -> bool:
        return True

    def allocate(self) -> None:
        return None

    def begin(self, sequence: Sequence) -> None:
        assert sequence.adapter
        assert sequence.adapter in self.slots
        number = sequence.request.sequence
        self.running[number] = sequence
        sequence.before = len(sequence.tokens)
        self.left[number] = self.prefill
        self.draws[number] = Random(seed(sequence.request.sampling, len(sequence.tokens)))
        self.begun[number] += 1

    def close(self, number: int) -> Sequence:
        return self.running.pop(number)

    def busy_adapters(self) -> Counter[Adapter]:
        return Counter(each.adapter for each in self.running.values() if each.adapter)

    def write(self, adapter: Adapter, _: Any, used: Mapping[Adapter, int], keep: Collection[Adapter] = ()) -> bool:
        return self.slots.take(adapter, {*self.busy_adapters(), *keep}, used) is not None

    take: Any = RoutedEngine.take

    def run(self) -> list[Output]:
        self.clock[0] += STEP
        outputs = []
        for number, sequence in list(self.running.items()):
            assert sequence.adapter
            assert sequence.adapter in self.slots, "its slot was given away while it ran"
            if self.left[number]:
                self.left[number] -= 1
                continue
            token = self.draws[number].randrange(1000)
            sequence.tokens.append(token)
            finish: Any = "length" if len(sequence.tokens) == sequence.request.max_tokens else None
            outputs.append(Output(number, [token], finish))
            if finish:
                del self.running[number]
        return outputs


class Engines:
    operator = True
    draining = linking = None
    changed = 0.0
    resting = False

    def __init__(self, engine: Engine) -> None:
        self.current = engine

    def busy(self, *_: Any) -> bool:
        return bool(self.current.running)

    def is_broken(self, _: Adapter) -> bool:
        return False

    def advance(self, *_: Any) -> None:
        return None


class Packer:
    pending = ()

    def get(self, *_: Any) -> bytes:
        return b"packed"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("loraplex.server.engine.routed.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def make_lane(clock: list[float], slots: int = SLOTS, prefill: int = 0) -> RoutedLane:
    lane = RoutedLane.__new__(RoutedLane)
    adapters = {name: Adapter(name, Path(name), name, {}) for name in map(str, range(ADAPTERS))}
    lane.unsupported = frozenset()
    lane.device = "cuda"
    for field, value in {
        "engines": Engines(Engine(clock, slots, prefill)),
        "packer": Packer(),
        "known": adapters,
        "used": dict.fromkeys(adapters.values(), 0),
        "clock": itertools.count(1),
        "waiting": deque(),
        "held": set(),
        "ended": [],
        "fallback": LaneBeside(None, frozenset(), {}),
        "turn_seconds": TURN,
    }.items():
        setattr(lane, f"_{field}", value)
    return lane


@pytest.mark.parametrize("slots", [1, 2, SLOTS])
@pytest.mark.parametrize("tokens", [20, 1500])
def test_no_request_waits_longer_than_a_round(clock: list[float], tokens: int, slots: int) -> None:
    """Half of the slots fall free at a time, so all adapters have had their turn after four; answers of any length."""
    lane, numbers, names = make_lane(clock, slots), itertools.count(), itertools.cycle(map(str, range(ADAPTERS)))
    last: dict[int, float] = {}
    longest = 0.0

    def submit() -> None:
        number = next(numbers)
        last[number] = clock[0]
        lane.submit(Submit(number, next(names), [1, 2], tokens, Sampling(temperature=0)))

    for _ in range(2 * ADAPTERS):
        submit()
    answered = 0
    while last:
        outputs = lane.step()
        clock[0] += 0.0 if outputs else STEP
        for output in outputs:
            longest = max(longest, clock[0] - last[output.sequence])
            last[output.sequence] = clock[0]
            if output.finish:
                del last[output.sequence]
                answered += 1
                if clock[0] < 40:
                    submit()
    assert answered >= 2 * ADAPTERS
    assert longest < min(2, slots) * ADAPTERS / slots * TURN + 0.5


@pytest.mark.parametrize("slots", [1, SLOTS])
def test_prompts_that_take_longer_than_a_turn_come_to_an_end(clock: list[float], slots: int) -> None:
    """Each turn brings some tokens, however long it takes to begin."""
    lane, tokens = make_lane(clock, slots, prefill=int(1.5 * TURN / STEP)), 60
    for number in range(2 * ADAPTERS):
        lane.submit(Submit(number, str(number % ADAPTERS), [1, 2], tokens, Sampling(temperature=0)))
    answers: dict[int, list[int]] = {}
    while lane.busy:
        step(lane, clock, answers)
        assert clock[0] < 200
    assert {len(answer) for answer in answers.values()} == {tokens}


@pytest.mark.parametrize("pinned", [SLOTS - 1, SLOTS + 1, ADAPTERS])
def test_however_many_are_pinned_the_others_have_their_turns(clock: list[float], pinned: int) -> None:
    """More than there are slots may be for a while: a pinned adapter is replaced while requests still use the old."""
    lane = make_lane(clock)
    engine: Any = lane._engines.current
    engine.slots.pinned = {lane._known[str(index)] for index in range(pinned)}
    last: dict[int, float] = {}
    for number in range(2 * ADAPTERS):
        last[number] = 0.0
        lane.submit(Submit(number, str(number % ADAPTERS), [1, 2], 1500, Sampling(temperature=0)))
    longest = 0.0
    while last:
        for output in step(lane, clock, {}):
            longest = max(longest, clock[0] - last[output.sequence])
            last[output.sequence] = clock[0]
            if output.finish:
                del last[output.sequence]
    assert longest < ADAPTERS * TURN + 0.5


def step(lane: RoutedLane, clock: list[float], answers: dict[int, list[int]]) -> list[Output]:
    outputs = lane.step()
    clock[0] += 0.0 if outputs else STEP
    for output in outputs:
        answers.setdefault(output.sequence, []).extend(output.tokens)
    return outputs


def drawn(sampling: Sampling, tokens: int) -> list[int]:
    """What nobody interrupts."""
    draws = Random(sampling.seed)
    return [draws.randrange(1000) for _ in range(tokens)]


def test_a_seed_gives_the_same_answer_whoever_waits(clock: list[float]) -> None:
    """Answers take five turns. Those that nobody gave a seed for give way, and go on with other draws."""
    lane, tokens = make_lane(clock), 500
    samplings = [Sampling(seed=number, seed_given=number % 3 == 0) for number in range(3 * ADAPTERS)]
    for number, sampling in enumerate(samplings):
        lane.submit(Submit(number, str(number % ADAPTERS), [1, 2], tokens, sampling))
    answers: dict[int, list[int]] = {}
    while lane.busy:
        step(lane, clock, answers)
    engine: Any = lane._engines.current
    for number, sampling in enumerate(samplings):
        if sampling.seed_given:
            assert answers[number] == drawn(sampling, tokens)
        assert len(answers[number]) == tokens
    interrupted = [number for number, count in engine.begun.items() if count > 1]
    assert interrupted
    for number in interrupted:
        whole = drawn(samplings[number], tokens)
        parts = [index for index in range(1, tokens) if answers[number][index : index + 5] == whole[:5]]
        assert not parts, "it draws again what it began with"


def test_answers_that_do_not_give_way_hold_up_their_own_slots_only(clock: list[float]) -> None:
    """Two adapters have answers of a minute, with seeds; the other slots go round among the rest."""
    lane, numbers = make_lane(clock), itertools.count()
    for name in "01":
        sampling = Sampling(seed=1, seed_given=True)
        lane.submit(Submit(next(numbers), name, [1, 2], 6000, sampling))
    answers: dict[int, list[int]] = {}
    step(lane, clock, answers)
    last = {}
    for name in itertools.islice(itertools.cycle("234567"), 12):
        last[number := next(numbers)] = clock[0]
        lane.submit(Submit(number, name, [1, 2], 1500, Sampling(temperature=0)))
    longest = 0.0
    while clock[0] < 55:
        for output in step(lane, clock, answers):
            if output.sequence in last:
                longest = max(longest, clock[0] - last[output.sequence])
                last[output.sequence] = clock[0]
                if output.finish:
                    del last[output.sequence]
    assert not last
    # Of two slots one falls free at a time, for six adapters, and it takes a turn to find out who does not leave.
    assert longest < 7 * TURN + 0.5
    while lane.busy:
        step(lane, clock, answers)
    assert answers[0] == answers[1] == drawn(Sampling(seed=1), 6000)
