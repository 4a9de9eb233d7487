"""Capturing CUDA graphs in a real lane, on a CPU, where the same sequences run and nothing is captured."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplex.server.engine import routed
from loraplex.server.engine.messages import Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions
from loraplex.server.engine.warmup import GREEDY, WarmUp
from loraplex.server.errors import BundleInvalid
from tests.engine.lanes import Model, ask, run

MOST = 4
PROMPT = (0, 8, 15, 22)
OUTSIDE = 10**8
"""No token: the model's Gather fails on it."""


def make_lane(model: Model, cache: Path, warm_up: WarmUp | None = None) -> RoutedLane:
    """As on CUDA, but for the shapes, which are those of `warm_up`."""
    options = EngineOptions(max_batch_size=MOST)
    lane = RoutedLane(model.bundle.variant("generator"), device="cpu", threads=1, cache=cache, options=options)
    lane._engines.current._warm_up = warm_up
    return lane


def check(lane: RoutedLane, model: Model) -> None:
    """It answers as if nothing had run before."""
    assert ask(lane, PROMPT).tokens == model.expected(None, PROMPT, 16)
    assert not lane.busy


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Levels and texts of what the log says of capturing, with no times."""
    found = [(record.levelname, record.getMessage()) for record in caplog.records if "CUDA" in record.getMessage()]
    return [(level, re.sub(r"\d+\.\d s", "N s", text)) for level, text in found]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loraplex.routed")


def test_the_log_says_what_was_captured(llama: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Shapes of up to 4 sequences, short ones and longer ones."""
    lane = make_lane(llama, tmp_path, WarmUp(MOST, block=4, longest=64))
    lane.capture_graphs()
    assert lines(caplog) == [("INFO", "CUDA graphs captured: 8 of 8 shapes in N s")]
    check(lane, llama)
    assert len(lines(caplog)) == 1


def test_the_rest_is_captured_while_nothing_runs(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(routed, "CAPTURE_SECONDS", 0.0)
    lane = make_lane(llama, tmp_path, WarmUp(MOST, block=4, longest=64))
    lane.capture_graphs()
    first = ("WARNING", "CUDA graphs take long to capture: 0 of 8 shapes in N s, the others while nothing runs")
    assert lines(caplog) == [first]
    check(lane, llama)
    assert lines(caplog) == [first, ("INFO", "CUDA graphs captured: 8 of 8 shapes in N s")]


def test_a_sequence_that_the_engine_refuses_ends_capturing(
    llama: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The long prompts are beyond the model's context."""
    lane = make_lane(llama, tmp_path, WarmUp(MOST, block=256, longest=3000))
    lane.capture_graphs()
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert text.startswith("CUDA graphs captured: 4 of 8 shapes in N s, no more before they are needed: max_session_")
    check(lane, llama)


class Failing(WarmUp):
    """Has the model fail."""

    def begin(self) -> Iterator[Submit]:
        for number, _ in enumerate(super().begin()):
            yield Submit(-1 - number, None, [OUTSIDE], 4, GREEDY)


def test_an_engine_that_fails_on_capturing_ends_the_start(llama: Model, tmp_path: Path) -> None:
    lane = make_lane(llama, tmp_path, Failing(MOST, block=4, longest=64))
    with pytest.raises(BundleInvalid, match=r"--no-cuda-graphs: .*engine_execution_failure"):
        lane.capture_graphs()


def test_an_engine_that_cannot_go_on_ends_its_process(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would refuse every request from then on; the next process begins what had not begun."""
    lane = make_lane(llama, tmp_path)
    monkeypatch.setattr(RoutedLane, "_refusal", lambda *_: None)
    with pytest.raises(RuntimeError, match="the engine cannot go on: engine_execution_failure"):
        run(lane, [Submit(1, None, [OUTSIDE], 4, GREEDY)])
