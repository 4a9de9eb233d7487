"""Choosing each row's next token from the logits of a step, for all rows at once.

What a row chooses depends on its own logits, its own sampling settings and its own random numbers: one uniform number a
token, from a Philox generator keyed by the row's seed. The company of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.guide import GuideState
from loraplex.server.engine.messages import Logprobs, Sampling

Floats = npt.NDArray[np.float32]

NUCLEUS = 12.0
"""Tokens within so much of the best logit are tried as the top-p set before all are sorted."""


class Choice(NamedTuple):
    """One row's next token."""

    token: int
    logprobs: Logprobs | None


class Chooser:
    """How one sequence chooses, and what it has chosen so far."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], end_tokens: frozenset[int], guide: GuideState | None
    ) -> None:
        self.sampling = sampling
        self.guide = guide
        self.ends = frozenset(sampling.stop_tokens) | (frozenset() if sampling.ignore_eos else end_tokens)
        """Tokens that end the answer."""
        if guide is not None:
            self.ends |= end_tokens  # nothing else can follow a guide's end
        self._end_tokens = end_tokens
        self.allowed: npt.NDArray[np.bool_] | None = None
        """What the guide lets come next, [vocabulary]."""
        self.counts: dict[int, int] = {}
        """How often the answer has each of its tokens."""
        self.chosen = 0
        self.repeated: set[int] = set(prompt) if sampling.repetition_penalty != 1 else set()
        """Tokens under the repetition penalty."""
        self.plain = (
            guide is None
            and sampling.temperature == 0
            and sampling.logprobs is None
            and not (self.penalizes or sampling.logit_bias or sampling.min_tokens)
        )
        """Greedy, and nothing changes the logits."""
        self._random = np.random.Generator(np.random.Philox(key=sampling.seed))

    @property
    def penalizes(self) -> bool:
        wanted = self.sampling
        return (wanted.repetition_penalty, wanted.frequency_penalty, wanted.presence_penalty) != (1, 0, 0)

    @property
    def forbidden(self) -> list[int]:
        """Tokens that may not come yet."""
        if self.guide is not None or self.chosen >= self.sampling.min_tokens:
            return []
        return sorted(self.ends | self._end_tokens)

    def look_ahead(self) -> None:
        """Find out what the guide allows, before `choose`. Raises GuideInvalid."""
        if self.guide is not None:
            self.allowed = self.guide.allowed()

    def uniform(self) -> float:
        """The next number of the seed's sequence, in [0, 1)."""
        return float(self._random.random())

    def accept(self, token: int) -> None:
        """Note the chosen token. Raises GuideInvalid."""
        self.chosen += 1
        if self.penalizes:
            self.counts[token] = self.counts.get(token, 0) + 1
            self.repeated.add(token)
        if self.guide is not None:
            self.guide.accept(token)


def choose(logits: Floats, choosers: Sequence[Chooser]) -> list[Choice]:
    """The next token of each row of logits [rows, vocabulary], which are overwritten.

    Each chooser looks ahead before, and is told with `accept` what it chose afterwards.
    """
    if all(chooser.plain for chooser in choosers):
        return [Choice(int(token), None) for token in logits.argmax(axis=-1)]
    reported = [row for row, chooser in enumerate(choosers) if chooser.sampling.logprobs is not None]
    unchanged = logits[reported]  # a copy
    for row, chooser in enumerate(choosers):
        if bias := chooser.sampling.logit_bias:
            logits[row, list(bias)] += np.fromiter(bias.values(), np.float32, len(bias))
    _penalize(logits, choosers)
    for row, chooser in enumerate(choosers):
        if chooser.allowed is not None:
            logits[row, ~chooser.allowed] = -np.inf
        elif forbidden := chooser.forbidden:
            logits[row, forbidden] = -np.inf
    tokens = logits.argmax(axis=-1)
    sampled = [row for row, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    if sampled:
        tokens[sampled] = _sample(logits[sampled], [choosers[row] for row in sampled])
    reports: list[Logprobs | None] = [None] * len(choosers)
    for row, original in zip(reported, unchanged, strict=True):
        reports[row] = logprobs(original, int(tokens[row]), choosers[row].sampling.logprobs or 0)
    return [Choice(int(token), report) for token, report in zip(tokens, reports, strict=True)]


def _penalize(logits: Floats, choosers: Sequence[Chooser]) -> None:
    """Repetition over prompt and answer (logit / p, or * p below 0), then frequency and presence over the answer.

    The definitions are those of the CTRL paper (https://arxiv.org/abs/1909.05858, section 4.1), with the correction for
    negative logits that every implementation has, and of OpenAI's API.
    """
    rows = [row for row, chooser in enumerate(choosers) if chooser.penalizes]
    if not rows:
        return
    repeated = [np.fromiter(choosers[row].repeated, np.int64, len(choosers[row].repeated)) for row in rows]
    index, ids = np.repeat(rows, [len(r) for r in repeated]), np.concatenate(repeated)
    penalty = np.array([choosers[row].sampling.repetition_penalty for row in rows], np.float32)
    penalty = np.repeat(penalty, [len(r) for r in repeated])
    values = logits[index, ids]
    logits[index, ids] = np.where(values > 0, values / penalty, values * penalty)
    for row in rows:
        sampling, counts = choosers[row].sampling, choosers[row].counts
        answer = np.fromiter(counts, np.int64, len(counts))
        times = np.fromiter(counts.values(), np.float32, len(counts))
        logits[row, answer] -= sampling.frequency_penalty * times + sampling.presence_penalty


def _sample(logits: Floats, choosers: Sequence[Chooser]) -> list[int]:
    temperature = np.array([chooser.sampling.temperature for chooser in choosers], np.float32)
    logits -= logits.max(axis=-1, keepdims=True)
    # A temperature so low that it overflows is as good as greedy: the best token is 0, all others -inf.
    with np.errstate(over="ignore"):
        logits /= np.maximum(temperature, np.float32(1e-6))[:, None]
    weights = np.exp(logits)
    tokens = []
    for row, chooser in enumerate(choosers):
        sampling, weight = chooser.sampling, weights[row]
        kept: npt.NDArray[np.intp] | None = None
        if sampling.min_p > 0:
            weight[weight < sampling.min_p] = 0
        if 0 < sampling.top_k < len(weight):
            weight[weight < np.partition(weight, -sampling.top_k)[-sampling.top_k]] = 0
        if sampling.top_p < 1:
            kept = _nucleus(logits[row], weight, sampling.top_p)
        tokens.append(_draw(weight, kept, chooser.uniform()))
    return tokens


def _nucleus(logits: Floats, weight: Floats, top_p: float) -> npt.NDArray[np.intp]:
    """The fewest tokens whose weights make up top_p of all, likeliest first; of equal ones the lower id first."""
    goal = top_p * float(weight.sum(dtype=np.float64))
    candidates = np.flatnonzero((logits > -NUCLEUS) & (weight > 0))
    if weight[candidates].sum(dtype=np.float64) < goal:
        candidates = np.flatnonzero(weight > 0)
    order = candidates[np.argsort(-weight[candidates], kind="stable")]
    before = np.cumsum(weight[order], dtype=np.float64)
    return order[: int(np.searchsorted(before, goal)) + 1]


def _draw(weight: Floats, kept: npt.NDArray[np.intp] | None, uniform: float) -> int:
    """The token at `uniform` of the cumulated weights, of `kept` tokens or of all."""
    cumulated = np.cumsum(weight if kept is None else weight[kept], dtype=np.float64)
    # Rounding may leave the product at the sum itself, behind the last token that has any weight.
    at = min(
        int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right")),
        int(np.searchsorted(cumulated, cumulated[-1])),
    )
    return at if kept is None else int(kept[at])


def logprobs(logits: Floats, token: int, count: int) -> Logprobs:
    """Of one token and of the `count` likeliest, by unmodified logits [vocabulary]."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    best = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.intp)
    best = best[np.argsort(-values[best], kind="stable")]
    return Logprobs(float(values[token]), [(int(i), float(values[i])) for i in best])
