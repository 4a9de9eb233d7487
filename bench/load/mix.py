"""Which model each request asks for."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from loraplex.bench.errors import OptionsInvalid

HOW = "take random, round-robin, zipf:EXPONENT, split:NAME=SHARE,NAME=SHARE or bursts:LENGTH"
ZIPF_EXPONENT = 1.0
BURST = 10


def assign(mix: str, adapters: Sequence[str], count: int, seed: int) -> list[str]:
    """The model of each of `count` requests. Raises OptionsInvalid.

    `random` gives every adapter the same chance. `zipf:S` gives the adapter of rank k, in the order given, a chance in
    proportion to 1 / k^S. `split` gives exact shares, in random order. `bursts:N` asks for one adapter N times before
    it goes on to the next.
    """
    kind, _, parameter = mix.partition(":")
    if kind == "split":
        return _split(parameter, adapters, count, seed)
    if not adapters:
        raise OptionsInvalid(f"--adapter-mix {mix} needs --adapters")
    if kind == "random" and not parameter:
        return random.Random(seed).choices(adapters, k=count)
    if kind == "round-robin" and not parameter:
        return [adapters[index % len(adapters)] for index in range(count)]
    if kind == "zipf":
        exponent = _number(mix, parameter, ZIPF_EXPONENT)
        weights = [rank**-exponent for rank in range(1, len(adapters) + 1)]
        return random.Random(seed).choices(adapters, weights, k=count)
    if kind == "bursts":
        length = _number(mix, parameter, BURST)
        if length < 1 or length != int(length):
            raise OptionsInvalid(f"--adapter-mix {mix}: a burst is a whole number of requests")
        return [adapters[index // int(length) % len(adapters)] for index in range(count)]
    raise OptionsInvalid(f"--adapter-mix {mix} is unknown: {HOW}")


def named(mix: str, adapters: Sequence[str]) -> list[str]:
    """Every model that the mix may ask for, though chance may leave one out. Raises OptionsInvalid."""
    kind, _, parameter = mix.partition(":")
    return list(_shares(parameter)) if kind == "split" else list(adapters)


def _number(mix: str, given: str, default: float) -> float:
    try:
        found = float(given or default)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise OptionsInvalid(f"--adapter-mix {mix}: {given} is not a number of at least 0")
    return found


def _shares(parameter: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for each in parameter.split(","):
        name, _, share = each.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = math.nan
        if not (name and math.isfinite(shares[name]) and shares[name] > 0):
            raise OptionsInvalid(f"--adapter-mix split: {each!r} is not NAME=SHARE, as split:travel=0.7,tone=0.3")
    return shares


def _split(parameter: str, adapters: Sequence[str], count: int, seed: int) -> list[str]:
    shares = _shares(parameter)
    if adapters and set(adapters) != set(shares):
        raise OptionsInvalid(
            f"--adapters names {', '.join(adapters)}, --adapter-mix split {', '.join(shares)}: leave out --adapters"
        )
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    left = count - sum(whole.values())
    for name in sorted(exact, key=lambda each: whole[each] - exact[each])[:left]:
        whole[name] += 1
    found = [name for name, times in whole.items() for _ in range(times)]
    random.Random(seed).shuffle(found)
    return found
