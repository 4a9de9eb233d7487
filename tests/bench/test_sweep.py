"""`loraplex bench sweep` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex.bench.load.steps import Steps
from loraplex.bench.load.sweep import Point, saturated
from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO, custom
from tests.bench.scripted_server import Scripted
from tests.cli import Cli


def test_a_sweep_goes_up_to_the_last_step_or_to_saturation(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    command = ["sweep" if each == "serve" else each for each in custom(scripted, questions, prompts=40)]
    ended = cli(*command, "--values", "1", "2", "--min-gain", "0", "--result-dir", tmp_path, "--label", "up")
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["over"] == "concurrency"
    assert [point["file"] for point in found["points"]][:1] == ["up-concurrency1.json"]
    for point in found["points"]:
        (run,) = read(tmp_path / point["file"])
        assert run.configuration.max_concurrency == point["value"]
        assert run.totals.output_throughput == point["output_throughput"]
        assert run.totals.completed == max(16, 10 * point["value"])
    # An objective that nothing meets ends it at once.
    ended = cli(*command, "--over", "rate", "--values", "50", "60", "--goodput", "ttft:0", "--result-dir", tmp_path)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [point["value"] for point in found["points"]] == [50]
    assert found["stopped"] == "only 0% of the requests met the objectives"


@pytest.mark.parametrize(
    ("answers", "steps", "stopped"),
    [
        (16, 1, "at 2: {url} cannot be reached: "),  # all of the first step
        (20, 2, "12 of 16 requests failed: http_500: it is dying"),
    ],
)
def test_a_sweep_keeps_what_it_measured_before_the_server_died(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path, answers: int, steps: int, stopped: str
) -> None:
    scripted.answers = answers
    command = ["sweep" if each == "serve" else each for each in custom(scripted, questions, prompts=16)]
    page = tmp_path / "sweep.html"
    ended = cli(*command, "--model", "steady", "--values", "1", "2", "4", "--result-dir", tmp_path, "--html", page)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert len(found["points"]) == steps
    assert found["stopped"].startswith(stopped.format(url=scripted.url))
    assert found["best"] == 1
    assert found["failed"] == (steps == 1)
    assert ended.status == (1 if steps == 1 else 0)
    assert f"{found['stopped']}; best at concurrency 1" in ended.out
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("failed", "goodput", "reason"),
    [
        (0, 10.0, None),
        (0, 6.0, "only 48% of the requests met the objectives"),
        (8, 12.5, None),
        (12, 12.5, "only 45% of the requests met the objectives"),  # all that succeeded did
        (0, None, None),
    ],
)
def test_a_request_that_failed_met_no_objective(failed: int, goodput: float | None, reason: str | None) -> None:
    point = Point(
        value=1.0,
        file="",
        completed=10,
        failed=failed,
        request_throughput=12.5,
        request_goodput=goodput,
        output_throughput=100.0,
        mean_ttft_ms=1.0,
        mean_tpot_ms=1.0,
        client_core_share=0.1,
    )
    assert saturated([point], Steps()) == reason


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--values", "2", "1"), "do not rise"),
        (("--values", "1.5"), "a whole number"),
        (("--start", "8", "--stop", "4"), "exchange them"),
        (("--max-concurrency", "4"), "leave out --max-concurrency"),
        (("--over", "rate", "--request-rate", "4"), "leave out --request-rate"),
        (("--dataset-name", "trace", "--dataset-path", "none"), "give --no-self-timed"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(cli: Cli, flags: tuple[str, ...], reason: str) -> None:
    ended = cli("bench", "sweep", "--tokenizer", DEMO, *flags)
    assert ended.status == 2
    assert reason in ended.err
