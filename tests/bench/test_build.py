"""`loraplex bench build`: what the record of a build says, side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loraplex.build.findings import Verification, write_findings
from loraplex.build.record import StepRecord
from loraplex.server.bundle import Bundle
from tests.bench.conftest import DEMO
from tests.cli import Cli


def make_built(folder: Path, torch: str = "2", **seconds: float) -> Path:
    """A bundle's folder with what a build of these steps leaves in it."""
    steps = [
        StepRecord(
            name=name,
            seconds=value,
            peak_bytes=int(value * 10**9),
            peak_device_bytes=2 * 10**9 if name == "quantize" else 0,
            output_bytes=3_500_000,
        )
        for name, value in seconds.items()
    ]
    (folder / "adapters").mkdir(parents=True)
    (folder / "adapters" / "one").write_bytes(bytes(2_000_000))
    base = Bundle.open(DEMO).manifest.base
    write_findings(folder, Verification(1, base, True, [], [], [], [], steps, {"processor": "EPYC", "torch": torch}))
    return folder


def test_steps_and_bundles_side_by_side(cli: Cli, tmp_path: Path) -> None:
    first = make_built(tmp_path / "first", quantize=8.0, export=2.0)
    second = make_built(tmp_path / "second", export=3.0, verify=1.5)
    ended = cli("bench", "build", first, second, "--json", tmp_path / "out.json")
    assert (ended.status, ended.err) == (0, "")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in ended.out.splitlines()]
    assert ["quantize", "8.0", "8 GB", "2 GB", "3.5 MB"] in lines
    assert ["all steps", "10.0", "8 GB", "2 GB", ""] in lines
    assert ["quantize", "8.0", "", ""] in lines
    assert ["export", "2.0", "3.0", "1.50"] in lines
    assert ["verify", "", "1.5", ""] in lines
    assert ["all steps", "10.0", "4.5", "0.45"] in lines
    assert "of it adapters 2 MB" in ended.out
    assert "processor EPYC, torch 2" in ended.out
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert [each["seconds"] for each in found] == [10.0, 4.5]


def test_builds_on_other_machines_are_warned_of(cli: Cli, tmp_path: Path) -> None:
    first, second = make_built(tmp_path / "a", export=2.0), make_built(tmp_path / "b", torch="3", export=3.0)
    ended = cli("bench", "build", first, second)
    assert (ended.status, ended.err) == (0, f"warning: torch: {first} has 2, {second} has 3\n")


def test_a_bundle_without_a_record_is_named(cli: Cli, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(DEMO, tmp_path / "bundle", ignore=shutil.ignore_patterns("verification.*")))
    ended = cli("bench", "build", bundle)
    assert ended.status == 2
    assert f"{bundle} has no verification.json" in ended.err
    (tmp_path / "verification.json").write_text("{}")
    ended = cli("bench", "build", tmp_path)
    assert ended.status == 2
    assert "is not what a build writes" in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "name a bundle, or a recipe with --run"),
        (("--run", "recipe.yaml"), "--run and --output belong together"),
        (("--run", "none.yaml", "--output", "out"), "--run none.yaml is no file"),
    ],
)
def test_what_is_missing_is_said(cli: Cli, flags: tuple[str, ...], message: str) -> None:
    ended = cli("bench", "build", *flags)
    assert ended.status == 2
    assert message in ended.err


@pytest.mark.slow
def test_a_recipe_that_cannot_be_built_is_the_builds_to_explain(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base: nowhere\n")
    ended = cli("bench", "build", "--run", tmp_path / "recipe.yaml", "--output", tmp_path / "out")
    assert ended.status == 1
    assert "ended with status 2" in ended.err
