"""What the soak says of memory that it has looked at: a leak is one that goes on."""

from __future__ import annotations

import math
from random import Random

from tests.soak import ROOM, grown

LOOKS = 72
"""Of a soak of three minutes."""
MIB = 2**20


def noisy(values: list[float]) -> list[int]:
    """With as much up and down as a look at a real server shows."""
    random = Random(1)
    return [int(value + random.uniform(-MIB / 4, MIB / 4)) for value in values]


def test_memory_that_fills_up_and_stays_is_no_leak() -> None:
    # The server's, of a soak that was called a leak once: 60.2 to 64.5 MB, most of it in the first half.
    warming = [60.2 * MIB + 4.3 * MIB * (1 - math.exp(-look / 12)) for look in range(LOOKS)]
    assert not grown("rss", noisy(warming))


def test_memory_that_grows_steadily_is_a_leak() -> None:
    leaking = [60 * MIB + 4.3 * MIB * look / LOOKS for look in range(LOOKS)]
    assert grown("rss", noisy(leaking))


def test_a_leak_is_found_behind_a_warm_up() -> None:
    both = [60 * MIB + 4 * MIB * (1 - math.exp(-look / 12)) + 4 * MIB * look / LOOKS for look in range(LOOKS)]
    assert grown("rss", noisy(both))


def test_descriptors_and_threads_that_are_never_closed_are_found() -> None:
    for what in ("descriptors", "threads"):
        assert grown(what, [50 + look // 2 for look in range(LOOKS)])
        assert not grown(what, [50 + look % 3 for look in range(LOOKS)])
    assert set(ROOM) == {"rss", "descriptors", "threads"}
