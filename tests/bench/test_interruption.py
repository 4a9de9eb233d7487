"""Ctrl-C: what was measured by then is told and kept."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO
from tests.bench.scripted_server import Scripted
from tests.server.process import wait_until

SHORT = ("--input-len", "8", "--output-len", "4", "--threads", "1", "--device", "cpu", "--lane", "batched")


def interrupted(
    command: list[str | Path], when: Callable[[], bool], errors: IO[str] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run `loraplex bench ...` and send it SIGINT once `when` is true; what goes to `errors` is not in the result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loraplex.server", "bench", *command],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or when())
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def asked(scripted: Scripted, tmp_path: Path, models: list[str]) -> list[str | Path]:
    """Flags of a run that asks these models, one after the other."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a question", "model": model}) + "\n" for model in models))
    flags: list[str | Path] = ["--base-url", scripted.url, "--model", "steady", "--dataset-name", "custom"]
    return [*flags, "--dataset-path", path, "--disable-shuffle", "--custom-output-len", "4"]


def test_an_interrupted_run_is_told_and_saved(scripted: Scripted, tmp_path: Path) -> None:
    ended = interrupted(
        [
            *("serve", *asked(scripted, tmp_path, [*["steady"] * 5, "hangs", *["other"] * 4])),
            *("--num-prompts", "10", "--max-concurrency", "1", "--save-result", "--save-detailed"),
            *("--result-dir", tmp_path, "--result-filename", "run.json", "--html", tmp_path / "run.html"),
        ],
        lambda: len(scripted.bodies) == 6,
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == ""
    warning = "interrupted: only the 5 of 10 requests that had ended by then count"
    assert f"warning: {warning}" in ended.stdout
    assert "Successful requests:                     5" in ended.stdout
    (run,) = read(tmp_path / "run.json")
    assert (run.interrupted, run.unfinished) == (True, 5)
    assert [each.model for each in run.requests] == ["steady"] * 5
    assert (run.totals.completed, run.totals.failed, run.totals.total_output_tokens) == (5, 0, 20)
    assert warning in (tmp_path / "run.html").read_text()


def test_requests_whose_time_has_not_come_are_not_waited_for(scripted: Scripted, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    arrivals = [(0, "steady"), (0, "hangs"), (10**6, "steady")]
    lines = [{"timestamp": at, "input_length": 9, "output_length": 3, "model": model} for at, model in arrivals]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = interrupted(
        [
            *("serve", "--base-url", scripted.url, "--model", "steady", "--tokenizer", DEMO, "--max-concurrency", "1"),
            *("--dataset-name", "trace", "--dataset-path", trace),
        ],
        lambda: len(scripted.bodies) == 2,
    )
    assert ended.returncode == 130, ended.stderr
    assert "only the 1 of 3 requests" in ended.stdout


def test_a_run_of_which_nothing_has_ended_says_so(scripted: Scripted, tmp_path: Path) -> None:
    command: list[str | Path] = ["serve", *asked(scripted, tmp_path, ["hangs"] * 2), "--num-prompts", "2"]
    command += ["--save-result", "--result-dir", tmp_path / "out"]
    ended = interrupted(command, lambda: len(scripted.bodies) == 2)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "loraplex: interrupted before any request had ended\n"
    assert not list((tmp_path / "out").iterdir())


def test_a_sweep_keeps_the_steps_that_were_done(scripted: Scripted, tmp_path: Path) -> None:
    # The first step has 16 prompts, the second begins with one that hangs.
    command: list[str | Path] = [
        "sweep",
        *asked(scripted, tmp_path, [*["steady"] * 16, "hangs"]),
        "--result-dir",
        tmp_path,
    ]
    command += ["--values", "1", "2", "--rounds", "9", "--num-prompts", "18", "--html", tmp_path / "sweep.html"]
    ended = interrupted(command, lambda: any(body["model"] == "hangs" for body in scripted.bodies))
    assert ended.returncode == 130, ended.stderr
    assert "interrupted at 2, which is left out; best at concurrency 1" in ended.stdout
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert ([point["value"] for point in found["points"]], found["interrupted"]) == ([1], True)
    assert "1 at once" in (tmp_path / "sweep.html").read_text()


@pytest.mark.slow
def test_lanes_keep_the_rounds_that_were_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as for a terminal, which is shown the round
    monkeypatch.setenv("COLUMNS", "120")
    log, shown = tmp_path / "runs.json", tmp_path / "shown"
    command: list[str | Path] = ["engine", DEMO, *SHORT, "--concurrency", "1", "--rounds", "100000", "--json", log]
    with shown.open("w") as errors:
        ended = interrupted(
            command, lambda: bool(re.search(r"round ([2-9]|\d\d+) of 100000", shown.read_text())), errors
        )
    assert ended.returncode == 130, shown.read_text()
    runs = read(log)
    labels = [run.configuration.label for run in runs]
    assert labels.count("batched, base") == labels.count("batched, 1 adapter") > 0
    assert f"interrupted after {len(runs) // 2} of 100000 rounds" in shown.read_text()
    assert "tokens/s of the base's" in ended.stdout
