"""The shapes that CUDA graphs are captured for, on a scripted og.Engine: a token of each, then prompts in order."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import pytest

from loraplex.server.engine.warmup import GRAPHS, WarmUp

BLOCK = 256
SCHEDULED = 2048
"""Prompt tokens of a step."""


@dataclass
class Running:
    prompt: int
    tokens: int
    left: int


class Engine:
    """Counts the decode steps of each shape: sequences, and blocks of the longest as onnxruntime-genai rounds them."""

    def __init__(self, warm_up: WarmUp) -> None:
        self.warm_up = warm_up
        self.running: list[Running] = []
        self.steps: Counter[tuple[int, int]] = Counter()

    def step(self) -> None:
        if not self.running:
            self.running = [Running(len(each.prompt), 0, each.max_tokens) for each in self.warm_up.begin()]
        prefilling = [each for each in self.running if each.tokens < each.prompt]
        if not prefilling:
            blocks = 8
            while blocks * BLOCK < max(each.tokens for each in self.running):
                blocks *= 2
            self.steps[len(self.running), blocks] += 1
        room = SCHEDULED - len(self.running)
        for each in self.running:
            more = min(room, max(0, each.prompt - each.tokens - 1))
            room -= more
            each.tokens += 1 + more
            each.left -= each.tokens >= each.prompt
        ended = sum(each.left == 0 for each in self.running)
        self.running = [each for each in self.running if each.left]
        for _ in range(ended):
            self.warm_up.end()


@pytest.mark.parametrize("longest", [512, 4096, 131072])
@pytest.mark.parametrize("most", [1, 3, 16, 64, 100, 128, 256])
@pytest.mark.parametrize("interruption", [0, 7, 100])
def test_the_shapes_that_matter_get_the_graphs_there_are(most: int, longest: int, interruption: int) -> None:
    """A graph is captured in a shape's second step. A request may end the warm-up at any time; it is taken up again."""
    warm_up = WarmUp(most, BLOCK, longest)
    engine = Engine(warm_up)
    for number in range(1, 5000):
        if warm_up.done:
            break
        engine.step()
        assert all(each.tokens < longest for each in engine.running)
        if interruption and number % interruption == 0 and number < 20 * interruption:
            engine.running.clear()
    assert warm_up.done
    captured = {shape for shape, steps in engine.steps.items() if steps > 1}
    assert captured == set(engine.steps)
    assert len(captured) <= GRAPHS
    buckets = [bucket for bucket in (8, 16, 32) if bucket == 8 or bucket * BLOCK <= longest]
    for bucket in buckets:
        sizes = {size for size, blocks in captured if blocks == bucket}
        assert {1, most} <= sizes
        assert max(sizes) == most
    short = sorted(size for size, blocks in captured if blocks == 8)
    assert short[: min(most, 16)] == list(range(1, min(most, 16) + 1))
    assert len(short) >= min(most, GRAPHS // 2)
    gaps = [after - before for before, after in itertools.pairwise(short)]
    assert max(gaps, default=0) <= max(1, most // 12)
