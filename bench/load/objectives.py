"""What `--goodput` says: objectives for all requests, in vLLM's form, and for those of one adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from loraplex.bench.errors import OptionsInvalid

METRICS = ("ttft", "tpot", "e2el")
MOST_NAMES = 10
"""Models that an error names."""


def limits(given: Iterable[str]) -> dict[str, float]:
    """Milliseconds by what stands before them: `ttft`, or `travel:ttft` of one adapter. Raises OptionsInvalid.

    They are split from the right: the names of other servers' adapters may have colons.
    """
    found = {}
    for each in given:
        key, _, value = each.rpartition(":")
        adapter, colon, metric = key.rpartition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = None
        if limit is None or not key or (colon and not adapter):
            raise OptionsInvalid(
                f"--goodput {each} is not NAME:MILLISECONDS, as ttft:200, or for one adapter as travel:ttft:200"
            )
        if metric not in METRICS:
            raise OptionsInvalid(f"--goodput {each}: objectives are for ttft, tpot and e2el")
        if not 0 <= limit < math.inf:
            raise OptionsInvalid(f"--goodput {each}: a time is not negative, and not infinite")
        found[key] = limit
    return found


def check_asked(objectives: Iterable[str], models: Sequence[str]) -> None:
    """Raises OptionsInvalid where an adapter that has an objective of its own is none of the models that are asked."""
    for key in objectives:
        adapter = key.rpartition(":")[0]
        if adapter and adapter not in models:
            names = ", ".join(models[:MOST_NAMES])
            if len(models) > MOST_NAMES:
                names += f" and {len(models) - MOST_NAMES} more"
            raise OptionsInvalid(f"--goodput {key}: no request asks {adapter}, but {names}: name one of --adapters")
