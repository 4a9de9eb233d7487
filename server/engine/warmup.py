"""Capturing CUDA graphs before requests need them.

og.Engine captures one graph for each number of sequences in a decode step and each power of two of KV blocks that the
longest of them fills (`SimpleDecoder::Decode` and `GetGraphBlockTableColumns` in onnxruntime-genai's src/engine). A
shape's first step runs without a graph, the second is captured, which takes several times as long as a step, and the
third is replayed. So while nobody asks for anything, an engine runs sequences of its own, one fewer every three steps;
the first request ends that, and it goes on where it was when the engine is idle again.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraplex.server.engine.messages import Sampling, Submit

STEPS = 3
"""Decode steps of each shape."""
SPAN = 64
"""Shapes in a lot: its sequences must not grow into the next power of two of KV blocks."""
MOST_BLOCKS = 4
GREEDY = Sampling(temperature=0.0, ignore_eos=True)


class WarmUp:
    """The shapes that are still to be captured, as lots of sequences with negative numbers."""

    def __init__(self, most: int, block: int, context: int) -> None:
        """For 1 to `most` sequences of up to MOST_BLOCKS KV blocks of `block` tokens, as far as `context` goes."""
        self._lots = [
            (prompt, min(bottom + SPAN, most), bottom)
            for prompt in (1, *(block * blocks // 2 + 1 for blocks in (2, MOST_BLOCKS)))
            if prompt + STEPS * SPAN < context
            for bottom in range(0, most, SPAN)
        ]
        self._running = 0

    @property
    def done(self) -> bool:
        return not self._lots

    def begin(self) -> Iterator[Submit]:
        """The sequences of the next lot: of its shapes each has one sequence less than the one before."""
        prompt, top, bottom = self._lots[0]
        self._running = top
        for index in range(top):
            steps = STEPS * min(index + 1, top - bottom)
            yield Submit(-1 - index, None, [0] * (prompt if index == top - 1 else 1), 1 + steps, GREEDY)

    def end(self) -> None:
        """One sequence has ended."""
        prompt, _, bottom = self._lots[0]
        self._running -= 1
        if self._running > bottom:
            self._lots[0] = prompt, self._running, bottom
        elif self._running == 0:
            del self._lots[0]
