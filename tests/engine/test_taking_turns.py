"""Adapters take turns at slots of which there are too few: nobody waits for longer than it takes to come round.

The operator needs a GPU, so the engine is scripted: a step takes 10 ms of a clock of its own and gives every running
sequence a token. All else, the lane and its slots, is real.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraplex.server.engine.messages import Output, Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import Sequence
from loraplex.server.engine.slots import Adapter, Slots

STEP = 0.01
TURN = 1.0
SLOTS = 4
ADAPTERS = 8


class Engine:
    """A RoutedEngine without a model."""

    warming = cold = False

    def __init__(self, clock: list[float]) -> None:
        self.slots = Slots(SLOTS, 1000)
        self.running: dict[int, Sequence] = {}
        self.linked = self.layout = self
        self.vocab_size = 1000
        self.clock = clock

    def holds(self, *_: Any) -> bool:
        return True

    def allocate(self) -> None:
        return None

    def begin(self, sequence: Sequence) -> None:
        assert sequence.adapter
        assert sequence.adapter in self.slots
        self.running[sequence.request.sequence] = sequence

    def busy_adapters(self) -> Counter[Adapter]:
        return Counter(each.adapter for each in self.running.values() if each.adapter)

    def write(self, adapter: Adapter, _: Any, used: Mapping[Adapter, int], keep: Collection[Adapter] = ()) -> bool:
        return self.slots.take(adapter, {*self.busy_adapters(), *keep}, used) is not None

    def take(self, adapter: Adapter) -> list[Sequence]:
        numbers = [number for number, each in self.running.items() if each.adapter == adapter]
        return [self.running.pop(number) for number in numbers]

    def run(self) -> list[Output]:
        self.clock[0] += STEP
        outputs = []
        for number, sequence in list(self.running.items()):
            assert sequence.adapter
            assert sequence.adapter in self.slots, "its slot was given away while it ran"
            sequence.tokens.append(7)
            finish: Any = "length" if len(sequence.tokens) == sequence.request.max_tokens else None
            outputs.append(Output(number, [7], finish))
            if finish:
                del self.running[number]
        return outputs


class Engines:
    operator = True
    draining = linking = None

    def __init__(self, engine: Engine) -> None:
        self.current = engine

    def next_link(self, *_: Any) -> None:
        return None

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


def make_lane(clock: list[float]) -> RoutedLane:
    lane = RoutedLane.__new__(RoutedLane)
    adapters = {name: Adapter(name, Path(name), name, {}) for name in map(str, range(ADAPTERS))}
    lane.unsupported = frozenset()
    for field, value in {
        "engines": Engines(Engine(clock)),
        "packer": Packer(),
        "known": adapters,
        "used": dict.fromkeys(adapters.values(), 0),
        "clock": itertools.count(1),
        "waiting": deque(),
        "ended": [],
        "fallback": None,
        "open_fallback": None,
        "fallback_unsupported": frozenset(),
        "turn_seconds": TURN,
    }.items():
        setattr(lane, f"_{field}", value)
    return lane


@pytest.mark.parametrize("tokens", [20, 1500])
def test_no_request_waits_longer_than_a_round(clock: list[float], tokens: int) -> None:
    """Half of the slots fall free at a time, so all adapters have had their turn after four; answers of any length."""
    lane, numbers, names = make_lane(clock), itertools.count(), itertools.cycle(map(str, range(ADAPTERS)))
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
    assert answered > 2 * ADAPTERS
    assert longest < 2 * ADAPTERS / SLOTS * TURN + 0.5
