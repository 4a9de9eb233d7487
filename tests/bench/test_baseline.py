"""The short run that tells whether a change made something slower. Time alone fails nothing: it warns."""

from __future__ import annotations

import warnings

import pytest

from loraplex.bench.baseline import drops, measure, read_baseline


class SlowerThanBaseline(UserWarning):
    """Shown in pytest's summary."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default::tests.bench.test_baseline.SlowerThanBaseline")
def test_no_ratio_is_lost() -> None:
    saved = read_baseline()
    found = measure(rounds=3)
    assert set(found) == set(saved.ratios)
    assert all(ratio > 0 for ratio in found.values())
    for line in drops(found, saved.ratios):
        warnings.warn(SlowerThanBaseline(line), stacklevel=1)


def test_a_drop_is_told_from_noise() -> None:
    saved = {"a / b": 1.0, "c / d": 2.0}
    assert drops({"a / b": 0.86, "c / d": 1.71, "new": 0.1}, saved) == []
    assert drops({"a / b": 0.84, "c / d": 3.0}, saved) == ["a / b: 0.84, saved is 1.00"]
