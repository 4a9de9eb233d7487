"""The flags of `bench sweep`: what is raised, how, and when it is enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.flags import AtLeastOne, OverZero
from loraplex.bench.load.options import Traffic

Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
FEWEST_PROMPTS = 16
"""Of a step."""


@Parameter(name="*", group="Sweep")
@dataclass(frozen=True, kw_only=True)
class Steps:
    """Loads, from light to heavy."""

    over: Literal["concurrency", "rate"] = "concurrency"
    "What is raised: requests at once, or requests a second."

    values: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = ()
    "The steps; doubled from --start to --stop unless given."

    start: OverZero = 1.0
    "First step."

    stop: OverZero = 256.0
    "Last step."

    rounds: AtLeastOne = 10
    "Requests of a step, for each of its value; at least 16 and at most --num-prompts."

    min_gain: Annotated[float, Parameter(validator=Number(gte=0))] = 0.05
    "The server is saturated where a step raises the output tokens a second by less than this share."

    min_goodput: Share = 0.5
    "With --goodput: it is, too, where fewer of the requests meet the objectives."

    def __iter__(self) -> Iterator[float]:
        """Raises OptionsInvalid."""
        values = self.values
        if not values:
            if self.start > self.stop:
                raise OptionsInvalid(f"--start {self.start:g} is above --stop {self.stop:g}: exchange them")
            doublings = int(math.log2(self.stop / self.start))
            values = tuple(self.start * 2**power for power in range(doublings + 1))
        for each in values:
            if each <= 0 or (self.over == "concurrency" and each != int(each)):
                raise OptionsInvalid(f"a step of {each:g} cannot be: a concurrency is a whole number, a rate is over 0")
        if sorted(set(values)) != list(values):
            raise OptionsInvalid("--values do not rise: give them from light to heavy, each once")
        return iter(values)

    def prompts(self, value: float, most: int) -> int:
        """How many requests a step has."""
        return min(most, max(FEWEST_PROMPTS, math.ceil(value * self.rounds)))

    def check(self, traffic: Traffic) -> None:
        """Raises OptionsInvalid."""
        _ = list(self)
        if self.over == "concurrency" and traffic.max_concurrency is not None:
            raise OptionsInvalid("--over concurrency sets it: leave out --max-concurrency, or give --over rate")
        if self.over == "rate" and traffic.request_rate != math.inf:
            raise OptionsInvalid("--over rate sets it: leave out --request-rate, or give --over concurrency")
        if traffic.ramp_up_strategy is not None:
            raise OptionsInvalid("a sweep has one load a step: leave out --ramp-up-strategy")
