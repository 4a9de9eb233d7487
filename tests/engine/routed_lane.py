"""The routed lane on a CPU, and what it is asked in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.messages import Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions, RoutedEngine
from tests.engine.lanes import GREEDY, Answer, Model

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


def fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next engine finds no memory, the one after it does."""
    init, full = RoutedEngine.__init__, [True]

    def no_room_for_two(*arguments: Any) -> None:
        if full.pop() if full else False:
            raise RuntimeError("out of memory")
        init(*arguments)

    monkeypatch.setattr(RoutedEngine, "__init__", no_room_for_two)
