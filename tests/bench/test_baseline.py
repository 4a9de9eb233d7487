"""The short run that tells whether a change made something slower. Time alone fails nothing: it warns."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from loraplex.bench.baseline import drops, measure, read_baseline

ROOT = Path(__file__).parents[2]
SLOWER = """
import loraplex.bench.baseline as baseline
baseline.measure = lambda rounds: {name: ratio / 2 for name, ratio in baseline.read_baseline().ratios.items()}
"""


class SlowerThanBaseline(UserWarning):
    """Shown in pytest's summary."""


@pytest.mark.slow
@pytest.mark.timeout(900)
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


def test_a_drop_is_shown_in_the_summary_and_fails_nothing(tmp_path: Path) -> None:
    """The test above by pytest with this project's settings, where every other warning is an error."""
    (tmp_path / "slower.py").write_text(SLOWER)
    command = [sys.executable, "-m", "pytest", "-p", "slower", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "tests/bench/test_baseline.py::test_no_ratio_is_lost"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name, ratio in read_baseline().ratios.items():
        assert f"SlowerThanBaseline: {name}: {ratio / 2:.2f}, saved is {ratio:.2f}" in ended.stdout
    assert "1 passed, 4 warnings" in ended.stdout
