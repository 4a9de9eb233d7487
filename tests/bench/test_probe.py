"""`--probe-request-rate`: requests beside the run, which do not count in it."""

from __future__ import annotations

import json
from pathlib import Path

from loraplex.bench.results.result_file import read
from tests.bench.conftest import custom, saving
from tests.bench.scripted_server import PROBES, Scripted
from tests.cli import Cli


def test_probes_are_measured_by_themselves(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    flags = ("--adapters", "awaits-probes", "--probe-request-rate", "100", "--max-concurrency", "2")
    ended = cli(*custom(scripted, questions), *flags, *saving(tmp_path), "--html", tmp_path / "run.html")
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    asked = [each for each in scripted.bodies if each["prompt"] == "Hi"]
    assert len(asked) >= PROBES
    assert all((each["model"], each["max_tokens"]) == ("steady", 1) for each in asked)
    assert run.probes is not None
    assert (run.probes.completed, run.probes.failed) == (len(asked), 0)
    assert 0 < run.probes.median_e2el_ms <= run.probes.p99_e2el_ms <= run.probes.max_e2el_ms
    assert (run.totals.completed, list(run.adapters)) == (12, ["awaits-probes"])
    keys = json.loads((tmp_path / "run.json").read_text())
    assert keys["probe_completed"] == len(asked)
    assert keys["probe_max_e2el_ms"] == run.probes.max_e2el_ms
    assert "Median probe E2EL (ms):" in ended.out
    assert f"{len(asked)} done, 0 failed" in (tmp_path / "run.html").read_text()


def test_probes_that_fail_do_not_fail_the_run(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    flags = ("--model", "refuses", "--adapters", "awaits-probes", "--probe-request-rate", "100")
    ended = cli(*custom(scripted, questions), *flags, *saving(tmp_path))
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert run.probes is not None
    assert run.probes.completed == 0
    assert run.probes.failed >= PROBES
    assert run.totals.completed == 12
    assert not [key for key in json.loads((tmp_path / "run.json").read_text()) if key.startswith("probe_m")]


def test_a_run_without_probes_tells_none(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    ended = cli(*custom(scripted, questions), *saving(tmp_path))
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert run.probes is None
    assert "Probe" not in ended.out
