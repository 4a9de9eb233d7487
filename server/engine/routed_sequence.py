"""A sequence of the routed lane, which may go on in another engine than the one it began in."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.slots import Adapter

LEAST_GAIN = 16
"""Tokens that a sequence gains before it gives way: its KV is computed again where it goes on."""
_SEEDS = 2**31
_SEED_STEP = 0x9E3779B1
"""Odd, so that no two lengths of an answer have the same seed."""


@dataclass
class Sequence:
    """A sequence and what it has generated so far, from which it can go on in another engine."""

    request: Submit
    adapter: Adapter | None
    """The one that had the request's name when it came."""
    tokens: list[int] = field(default_factory=list)
    before: int = 0
    """Tokens that it had when it began in the engine that it runs in."""

    @property
    def movable(self) -> bool:
        """Whether it can go on elsewhere: the engine begins every guide at its beginning."""
        return not self.tokens or self.request.guide is None

    @property
    def promised(self) -> bool:
        """Whether it would be another answer elsewhere than its client's seed gives: the engine begins every seed at
        its beginning."""
        return bool(self.tokens) and is_seeded(self.request.sampling)

    @property
    def gives_way(self) -> bool:
        """Whether it goes on elsewhere when it is asked to; not before it has gained something here, or one whose
        prompt takes longer than a turn would begin again and again."""
        return self.movable and not self.promised and len(self.tokens) >= self.before + LEAST_GAIN


def seed(sampling: Sampling, done: int) -> int:
    """The seed of an answer that has `done` tokens: what goes on must not draw the numbers again that it began with."""
    return (sampling.seed + done * _SEED_STEP) % _SEEDS


def is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature == 0 or sampling.top_k == 1


def is_seeded(sampling: Sampling) -> bool:
    """Whether another seed would be another answer than the one that the client asked for."""
    return sampling.seed_given and not is_greedy(sampling)
