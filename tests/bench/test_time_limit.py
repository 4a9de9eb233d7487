"""`--max-seconds`: after it nothing is sent, and what is under way ends."""

from __future__ import annotations

import json
from pathlib import Path

from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO, custom, saving
from tests.bench.scripted_server import DAWDLING_SECONDS, Scripted
from tests.cli import Cli


def test_requests_that_wait_for_a_place_are_not_sent(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    # The first answer takes longer than the limit, and nobody else has a place before it ends.
    limit = DAWDLING_SECONDS - 0.1
    flags = ("--model", "dawdles", "--max-concurrency", "1", "--max-seconds", str(limit))
    ended = cli(*custom(scripted, questions), *flags, *saving(tmp_path))
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert (run.totals.completed, run.totals.failed, run.unsent, run.unfinished) == (1, 0, 11, 0)
    assert run.configuration.max_seconds == limit
    assert not run.interrupted
    assert len(scripted.bodies) == 1
    assert "Requests not sent:                       11" in ended.out


def test_requests_of_a_later_time_are_not_waited_for(cli: Cli, scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": time, "input_length": 10, "output_length": 3} for time in (0, 0, 86_400_000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = cli(
        *("bench", "serve", "--base-url", scripted.url, "--tokenizer", DEMO, "--model", "steady"),
        *("--dataset-name", "trace", "--dataset-path", path, "--max-seconds", "3600", *saving(tmp_path)),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert (run.totals.completed, run.unsent) == (2, 1)


def test_a_limit_that_nothing_met_is_told(cli: Cli, scripted: Scripted, questions: Path) -> None:
    ended = cli(*custom(scripted, questions), "--max-seconds", "3600")
    assert ended.status == 0, ended.err
    assert "Requests not sent:                       0" in ended.out
    assert "note: all requests were sent within --max-seconds 3600" in ended.out
