"""Requests for the routed lane, and what is measured of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, cycle

import numpy as np
from msgspec import Struct

from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Sampling, Submit

GREEDY = Sampling(temperature=0.0, ignore_eos=True)


class Result(Struct, frozen=True):
    """One measurement. Times in milliseconds, as (p50, p99)."""

    tokens_per_second: float
    """Of all requests together, from the first one's start to the last one's end."""
    first_token: tuple[float, float]
    inter_token: tuple[float, float]
    longest_wait: float = 0.0
    """Between two tokens of any stream."""

    @classmethod
    def of(cls, tokens: int, seconds: float, first: Sequence[float], between: Sequence[float]) -> Result:
        """From times in seconds."""
        waits = [1000 * gap for gap in between] or [0.0]
        return cls(tokens / seconds, _percentiles([1000 * wait for wait in first]), _percentiles(waits), max(waits))

    def __str__(self) -> str:
        first, between = self.first_token, self.inter_token
        return (
            f"{self.tokens_per_second:.0f} tokens/s, TTFT {first[0]:.0f}/{first[1]:.0f} ms, "
            f"ITL {between[0]:.1f}/{between[1]:.1f} ms"
        )


def median(results: Sequence[Result]) -> Result:
    return sorted(results, key=lambda result: result.tokens_per_second)[len(results) // 2]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    return float(np.percentile(values, 50)), float(np.percentile(values, 99))


class Load:
    """Requests of random prompts for one lane, driven as the engine process drives it, without that process."""

    def __init__(
        self, lane: Lane, vocab_size: int, *, prompt: int = 128, output: int = 128, sampling: Sampling = GREEDY
    ) -> None:
        self._lane = lane
        self._prompt = prompt
        self._output = output
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._numbers = count(1)
        self._random = np.random.default_rng(0)

    def wave(self, streams: int, adapters: Sequence[str | None], prompts: Iterable[list[int]] | None = None) -> Result:
        """That many requests at once, adapters in turns, until all have ended; with these prompts or random ones."""
        return self._run(streams, adapters, 0.0, prompts)[0]

    def loop(self, streams: int, adapters: Sequence[str | None], seconds: float) -> tuple[Result, dict[str, float]]:
        """A closed loop for so long, then to the end; also when each adapter's first token came, in seconds."""
        return self._run(streams, adapters, seconds)

    def _random_prompts(self) -> Iterator[list[int]]:
        while True:
            yield self._random.integers(2, self._vocab_size - 65, self._prompt).tolist()

    def _run(
        self,
        streams: int,
        adapters: Sequence[str | None],
        seconds: float,
        given: Iterable[list[int]] | None = None,
    ) -> tuple[Result, dict[str, float]]:
        turns, prompts = cycle(adapters), iter(given or self._random_prompts())
        begun: dict[int, tuple[str | None, float]] = {}
        last: dict[int, float] = {}
        first: list[float] = []
        between: list[float] = []
        seen: dict[str, float] = {}
        tokens = 0
        start = time.perf_counter()

        def begin() -> None:
            number, adapter = next(self._numbers), next(turns)
            prompt = next(prompts)
            begun[number] = adapter, time.perf_counter()
            self._lane.submit(Submit(number, adapter, prompt, self._output, self._sampling))

        for _ in range(streams):
            begin()
        while begun:
            for output in self._lane.step():
                if output.error:
                    raise RuntimeError(output.error)
                now, (adapter, since) = time.perf_counter(), begun[output.sequence]
                if output.sequence in last:
                    between.append(now - last[output.sequence])
                else:
                    first.append(now - since)
                    seen.setdefault(adapter or "", now - start)
                last[output.sequence] = now
                tokens += len(output.tokens)
                if output.finish:
                    del begun[output.sequence], last[output.sequence]
                    if now - start < seconds:
                        begin()
        return Result.of(tokens, time.perf_counter() - start, first, between), seen
