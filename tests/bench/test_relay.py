"""What the relay notes of the answers that pass it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loraplex.bench.errors import BenchFailed
from loraplex.bench.experiments.relay import relayed
from loraplex.bench.results.result_file import read
from tests.bench.scripted_server import Scripted
from tests.cli import Cli


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {index}"}) + "\n" for index in range(12)))
    return path


def asked(url: str, questions: Path) -> list[str | Path]:
    return ["bench", "serve", "--base-url", url, "--dataset-name", "custom", "--dataset-path", questions]


def test_every_interval_of_every_answer_is_noted(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    with relayed(urlsplit(scripted.url).port or 0) as relay:
        saving: list[str | Path] = [
            "--save-result",
            "--save-detailed",
            "--result-dir",
            tmp_path,
            "--result-filename",
            "run.json",
        ]
        # Connections are used again, and lie idle while other answers pass.
        ended = cli(
            *asked(relay.url, questions),
            "--num-prompts",
            "12",
            "--custom-output-len",
            "5",
            "--max-concurrency",
            "3",
            *saving,
        )
        assert ended.status == 0, ended.err
        noted = relay.intervals()
        assert relay.intervals() == []
    (run,) = read(tmp_path / "run.json")
    assert len(noted) == sum(len(each.itls) for each in run.requests) == 12 * 4
    assert min(noted) >= 0


def test_an_answer_that_is_no_stream_is_told(cli: Cli, scripted: Scripted, questions: Path) -> None:
    with relayed(urlsplit(scripted.url).port or 0) as relay:
        cli(*asked(relay.url, questions), "--num-prompts", "1", "--custom-output-len", "3", "--model", "babbles")
        with pytest.raises(BenchFailed, match="not what the API says"):
            relay.intervals()


def test_a_server_that_is_not_there_ends_the_connection(cli: Cli, questions: Path) -> None:
    with relayed(9) as relay:
        ended = cli(*asked(relay.url, questions), "--num-prompts", "1", "--custom-output-len", "3", "--model", "steady")
        assert ended.status == 1
        assert relay.intervals() == []
