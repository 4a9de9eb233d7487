"""Capturing CUDA graphs before requests need them.

og.Engine captures a graph for each shape of a decode step: the number of sequences, and the blocks of KV cache that the
longest of them fills, rounded up to 8 or a larger power of two. A shape's first step runs without a graph, the second
is captured, which takes several times as long as a step, and the third is replayed. The first 64 shapes that come get
graphs, and no other ever does (the "shape budget" in docs/paged_attention_engine.md of onnxruntime-genai). A step
without a graph took 1.5 to 3 ms longer on an H200, three quarters of one sequence's. So the shapes are chosen: while
nobody asks for anything, an engine runs sequences of its own in those that matter most. The first request ends that,
and it goes on where it was when the engine is idle again.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraplex.server.engine.messages import Sampling, Submit

GRAPHS = 64
"""Shapes that get a graph."""
LEAST_BLOCKS = 8
"""KV blocks up to which the number of them makes no shape of its own."""
LONG = (10, 6)
"""Of them, those for sequences of more than 8 and more than 16 blocks, of which few run at a time."""
STEPS = 3
"""Decode steps of each shape."""
LEAST_TOKENS = 1024
"""Tokens of a long prompt that a step takes at least."""
GREEDY = Sampling(temperature=0.0, ignore_eos=True)


class WarmUp:
    """The shapes that are still to be captured, as lots of sequences with negative numbers."""

    def __init__(self, most: int, block: int, longest: int) -> None:
        """For up to `most` sequences of up to `longest` tokens, `block` tokens to a KV block."""
        prompts = [block * LEAST_BLOCKS * 2**index + 1 for index in range(len(LONG))]
        # The tokens that follow take less than a block.
        long = [(prompt, share) for prompt, share in zip(prompts, LONG, strict=True) if prompt + block <= longest]
        rest = GRAPHS - sum(share for _, share in long)
        self._lots = [(prompt, ladder(most, share)) for prompt, share in ((1, rest), *long)]
        self._running = 0
        self._shapes = self._left
        self.seconds = 0.0
        """Spent on it, for whoever runs it to add up."""

    @property
    def done(self) -> bool:
        return not self._lots

    @property
    def progress(self) -> str:
        """For the log: how many shapes have run as often as it takes."""
        return f"{self._shapes - self._left} of {self._shapes} shapes in {self.seconds:.1f} s"

    @property
    def _left(self) -> int:
        return sum(len(sizes) for _, sizes in self._lots)

    def begin(self) -> Iterator[Submit]:
        """The sequences of the next lot, of which some end after every STEPS steps, so that its shapes come in turn."""
        prompt, sizes = self._lots[0]
        self._running = sizes[0]
        # A step takes a token of every sequence before more of the long one, so that the others are steps ahead of it.
        ahead = prompt // LEAST_TOKENS
        for index in range(self._running):
            steps = ahead + STEPS * sum(size > index for size in sizes)
            yield Submit(-1 - index, None, [0] * (1 if index else prompt), 1 + steps, GREEDY)

    def end(self) -> None:
        """One sequence has ended."""
        prompt, sizes = self._lots[0]
        self._running -= 1
        if left := [size for size in sizes if size <= self._running]:
            self._lots[0] = prompt, left
        elif self._running == 0:
            del self._lots[0]


def ladder(most: int, count: int) -> list[int]:
    """At most `count` numbers of sequences, the largest first: `most`, every small one, and steps of equal size."""
    step = 1
    while len(range(step, most + 1, step)) > count // 2 and most > count:
        step *= 2
    rungs = {most, *range(step, most + 1, step)}
    return sorted(rungs | set(range(1, min(most, count - len(rungs)) + 1)), reverse=True)
