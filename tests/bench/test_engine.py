"""`loraplex bench engine` on the demo bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from loraplex.bench.lanes.engine_table import tables
from loraplex.bench.results.result_file import read
from loraplex.server.machine import usable_cores
from tests.bench.conftest import DEMO
from tests.bench.runs import make_run
from tests.cli import Cli

SHORT = ("--input-len", "8", "--output-len", "4", "--rounds", "1", "--threads", "1", "--device", "cpu")


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


def test_every_lane_is_measured_with_and_without_adapters(cli: Cli, tmp_path: Path) -> None:
    ended = cli("bench", "engine", DEMO, *SHORT, "--concurrency", "1", "3", "--json", tmp_path / "runs.json")
    assert (ended.status, ended.err) == (0, "")
    cases = {tuple(row[:4]) for row in rows(ended.out) if row[1] == "engine"}
    lanes = ("batched", "generator")
    # One stream asks for one adapter.
    assert cases == {(lane, "engine", streams, a) for lane in lanes for streams in "13" for a in ("base", streams)}
    assert "plex, 8 prompt and 4 output tokens, the bundle's adapters; wall time" in ended.out
    runs = read(tmp_path / "runs.json")
    assert Counter(run.configuration.label for run in runs) == {
        f"{lane}, {spread}": count
        for lane in lanes
        for spread, count in (("base", 2), ("1 adapter", 1), ("3 adapters", 1))
    }
    for run in runs:
        assert {request.output_tokens for request in run.requests} == {4}
        assert {request.input_tokens for request in run.requests} == {8}
        assert all(0 < request.ttft < request.latency <= run.duration for request in run.requests)
    mixed = next(run for run in runs if run.configuration.label == "batched, 3 adapters" and len(run.requests) == 3)
    assert {request.model for request in mixed.requests} == {"travel", "tone", "json"}


def test_random_adapters_take_the_place_of_the_bundles(cli: Cli, tmp_path: Path) -> None:
    flags = ("--random-adapters", "4", "--adapters", "1", "5", "--modules", "q_proj", "v_proj", "--lane", "batched")
    bundle = shutil.copytree(DEMO, tmp_path / "demo")  # others have their random adapters beside the demo itself
    ended = cli("bench", "engine", bundle, *SHORT, *flags, "--concurrency", "5", "--json", tmp_path / "runs.json")
    assert (ended.status, ended.err) == (0, "")
    assert "random adapters of rank 4 on q_proj, v_proj" in ended.out
    names = [sorted({request.model for request in run.requests}) for run in read(tmp_path / "runs.json")]
    assert sorted(names) == [["plex"], ["random-0"], [f"random-{index}" for index in range(5)]]
    assert not list(tmp_path.glob(".bench-*"))


@pytest.mark.slow
def test_the_http_layer_is_measured_beside_the_engine(cli: Cli, tmp_path: Path) -> None:
    flags = ("--lane", "batched", "--http", "--concurrency", "3", "--html", tmp_path / "page.html")
    ended = cli("bench", "engine", DEMO, *SHORT, *flags)
    assert (ended.status, ended.err) == (0, "")
    assert "tokens/s over HTTP of the engine's (range)" in ended.out
    assert [tuple(row[:3]) for row in rows(ended.out) if " - " in row[3]] == [
        ("batched", "3", "base"),
        ("batched", "3", "3"),
    ]
    page = (tmp_path / "page.html").read_text()
    assert "batched, 3 adapters, HTTP" in page
    assert "without usage" not in page


def test_shares_are_those_of_neighbours_in_a_round() -> None:
    runs = []
    for base, adapters in ((1.0, 0.9), (2.0, 1.6), (4.0, 3.8)):
        for spread, speed in (("0", base), ("2", adapters)):
            run = make_run(f"batched, {spread}", speed=speed, max_concurrency=4)
            run.metadata = {"lane": "batched", "over": "engine", "spread": spread}
            runs.append(run)
    told = tables(runs)
    shares = [row for row in rows(told) if "**" in row[4]]
    assert shares == [["batched", "engine", "4", "2", "**0.90** (0.80 - 0.95)", "**0.90** (0.80 - 0.95)"]]
    assert "noise" not in told
    for rounds, what in ((1, "1 round"), (2, "2 rounds")):
        told = tables(runs[: 2 * rounds])
        assert told.endswith(f"\n\nRatios of {what} may be noise: take --rounds 3 or more.")
        assert "**" not in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adapters", "4"), "the bundle has 3: have some made with --random-adapters RANK"),
        (("--modules", "q_proj"), "--modules is for random adapters"),
        (("--random-adapters", "2", "--modules", "qproj"), "--modules qproj: the base has"),
        (("--input-len", "5000"), "--input-len and --output-len are 5048 together: the base takes"),
    ],
)
def test_what_cannot_be_measured_is_refused(cli: Cli, flags: tuple[str, ...], message: str) -> None:
    ended = cli("bench", "engine", DEMO, *flags)
    assert ended.status == 2
    assert message in ended.err


@pytest.mark.slow
def test_a_benchmark_that_is_terminated_leaves_no_folder(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    command = [sys.executable, "-m", "loraplex.server", "bench", "engine", str(tmp_path / "demo"), "--rounds", "1000"]
    flags = ["--random-adapters", "4", "--lane", "batched", "--threads", "1", "--concurrency", "1"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".bench-*/*")):
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it made no folder"
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_more_threads_than_cores_are_told(cli: Cli) -> None:
    threads = usable_cores() + 1
    ended = cli("bench", "engine", DEMO, *SHORT[:-4], "--threads", str(threads), "--lane", "batched")
    assert ended.status == 0
    assert ended.err.startswith(f"warning: --threads {threads} wait for each other on the {threads - 1} cores")


def test_a_measurement_of_nothing_is_refused(cli: Cli) -> None:
    for flag in ("--streams", "--tokens", "--rates", "--rounds"):
        ended = cli("bench", "http", flag, "0")
        assert ended.status == 2
        assert f'Invalid value "0" for {flag}. Must be >= 1.' in ended.out + ended.err
    ended = cli("bench", "http", "--rates", "5000", "0")
    assert 'Invalid value "0" for --rates. Must be >= 1.' in ended.out + ended.err


def test_what_is_no_bundle_is_named(cli: Cli, tmp_path: Path) -> None:
    ended = cli("bench", "engine", tmp_path)
    assert ended.status == 2
    assert f"{tmp_path} is not a bundle: it has no bundle.json" in ended.err
