"""`loraplex bench serve` against our own server."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO
from tests.cli import Cli
from tests.server.process import ServerProcess


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_our_server_is_measured_with_its_adapters(cli: Cli, demo: ServerProcess, tmp_path: Path, backend: str) -> None:
    base = demo.client.models.list().data[0].id
    before = demo.metric("loraplex_generation_tokens_total")
    waited = demo.metric("loraplex_time_to_first_token_seconds_sum")
    ended = cli(
        *("bench", "serve", "--base-url", demo.url, "--backend", backend, "--tokenizer", DEMO),
        *("--adapters", base, "travel", "tone", "json", "--adapter-mix", "round-robin", "--max-concurrency", "4"),
        *("--random-input-len", "40", "--random-output-len", "12", "--num-prompts", "16", "--request-rate", "200"),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path, "--result-filename", "run.json"),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert (run.totals.completed, run.totals.failed) == (16, 0)
    assert {each.output_tokens for each in run.requests} == {12}
    assert {name: found.completed for name, found in run.adapters.items()} == dict.fromkeys(
        [base, "travel", "tone", "json"], 4
    )
    assert run.totals.total_output_tokens == demo.metric("loraplex_generation_tokens_total") - before
    assert run.tokens.without_usage == run.tokens.more_chunks == 0
    # What the server measured of the same requests lies within what the client did. It notes the time of a first token
    # once that is on its way, by when the client may have seen it.
    assert (
        sum(each.latency for each in run.requests)
        > demo.metric("loraplex_time_to_first_token_seconds_sum") - waited
        > 0
    )
    if backend == "openai":
        assert {each.input_tokens for each in run.requests} == {40}


def test_our_servers_refusals_are_told(cli: Cli, demo: ServerProcess) -> None:
    flags = ("--random-input-len", "4000", "--num-prompts", "2", "--tokenizer", DEMO)
    ended = cli("bench", "serve", "--base-url", demo.url, *flags)
    assert ended.status == 1
    assert "http_400:context_length_exceeded" in ended.out


def test_our_adapters_are_replaced_while_they_are_asked(cli: Cli, demo: ServerProcess, tmp_path: Path) -> None:
    ended = cli(
        *("bench", "serve", "--base-url", demo.url, "--tokenizer", DEMO, "--adapters", "travel", "tone"),
        *("--num-prompts", "40", "--random-input-len", "20", "--random-output-len", "16", "--request-rate", "10"),
        *("--churn", "travel", "tone", "--churn-interval", "0.1"),
        *("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json"),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert (run.totals.completed, run.totals.failed) == (40, 0)
    assert run.churn
    assert not any(each.error for each in run.churn)


def test_our_adapters_are_loaded_cold(cli: Cli, demo: ServerProcess, tmp_path: Path) -> None:
    ended = cli(
        *("bench", "serve", "--base-url", demo.url, "--tokenizer", DEMO, "--num-prompts", "2"),
        *("--random-input-len", "20", "--random-output-len", "2", "--cold", "travel", "tone", "--cold-rounds", "2"),
        *("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json"),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert [each.adapter for each in run.cold] == ["travel", "tone", "travel", "tone"]
    assert "Cold adapters" in ended.out
