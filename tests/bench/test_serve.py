"""`loraplex bench serve` as a user types it."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO, custom
from tests.bench.scripted_server import PROMPT_TOKENS, Scripted
from tests.cli import Cli


def test_a_run_is_printed_and_saved(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    ended = cli(
        *custom(scripted, questions),
        *("--lora-modules", "steady", "other", "--lora-assignment", "round-robin"),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path / "out", "--result-filename", "run.json"),
        *("--metadata", "version=0.3", "tp=1", "--label", "mine", "--goodput", "ttft:60000", "e2el:60000"),
        *(
            "--header",
            "x-one=1",
            "x-two=2",
            "--api-key",
            "secret",
            "--request-id-prefix",
            "r-",
            "--csv",
            tmp_path / "out" / "run.csv",
        ),
    )
    assert (ended.status, ended.err) == (0, "")
    assert "Successful requests:                     12" in ended.out
    assert "Jain index" in ended.out
    (run,) = read(tmp_path / "out" / "run.json")
    assert (run.totals.completed, run.totals.failed) == (12, 0)
    assert run.totals.total_output_tokens == run.tokens.chunks == 48
    assert run.totals.total_input_tokens == 12 * PROMPT_TOKENS
    assert run.totals.request_goodput == run.totals.request_throughput
    assert {name: found.completed for name, found in run.adapters.items()} == {"steady": 6, "other": 6}
    assert [each.model for each in run.requests] == ["steady", "other"] * 6
    assert run.metadata == {"version": "0.3", "tp": "1"}
    assert run.configuration.server == {"version": "1.2.3", "lane": "scripted", "a": "1"}
    assert (run.configuration.label, run.configuration.model_id) == ("mine", "steady")
    assert "secret" not in (tmp_path / "out" / "run.json").read_text()
    assert scripted.headers[0]["authorization"] == "Bearer secret"
    assert (scripted.headers[0]["x-one"], scripted.headers[0]["x-two"]) == ("1", "2")
    assert {each["x-request-id"] for each in scripted.headers} == {f"r-{number}" for number in range(12)}
    with (tmp_path / "out" / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["output_tokens"] for row in rows} == {"4"}


def test_errors_are_counted_by_kind_and_do_not_end_the_run(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    models = ("steady", "refuses", "cut", "tells")
    flags = ("--adapters", *models, "--adapter-mix", "round-robin")
    ended = cli(*custom(scripted, questions), *flags, "--save-result", "--result-dir", tmp_path)
    assert ended.status == 0
    assert "http_429:queue_full:                     3" in ended.out
    assert "warning: 9 of 12 requests failed: latencies are of the others" in ended.out
    assert "Too many wait" in ended.out
    (path,) = tmp_path.glob("openai-infqps-steady-*.json")
    (run,) = read(path)
    assert run.totals.errors_by_kind == {"http_429:queue_full": 3, "broken_stream": 3, "stream:engine_failed": 3}
    assert run.adapters["refuses"].errors_by_kind == {"http_429:queue_full": 3}
    assert run.adapters["refuses"].completed == 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("refuses", "http_429:queue_full: Too many wait"),
        ("unstreamed", 'no_stream: the answer is no stream of events but application/json: {"choices":[{"index":0,'),
        ("silent", "no_stream: the answer is empty"),
        ("latin", "broken_stream: a chunk is not what the API says: 'utf-8' codec can't decode byte 0xff"),
        ("cut", "broken_stream: the connection ended in the middle of the answer"),
    ],
)
def test_a_run_without_any_success_fails(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path, model: str, reason: str
) -> None:
    command = [*custom(scripted, questions, prompts=2), "--model", model]
    ended = cli(*command)
    assert ended.status == 1
    assert ended.err.startswith(f"loraplex: every request failed: {reason}")
    ended = cli("bench", "sweep", *command[2:], "--values", "1", "2", "--result-dir", tmp_path)
    assert ended.status == 1
    assert f"every request failed: {reason}" in ended.out


def test_answers_without_a_token_have_no_throughput(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json")
    ended = cli(*custom(scripted, questions), "--model", "wordless", "--html", tmp_path / "run.html", *saving)
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert (run.totals.completed, run.totals.total_output_tokens) == (12, 0)
    assert run.totals.output_throughput == run.totals.max_output_tokens_per_s == 0
    assert sum(run.timeline.adapters["wordless"].output_tokens) == 0


def test_a_label_is_no_folder_and_not_too_long(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for label in ("a/b", "long" * 100):
        saving = ("--save-result", "--result-dir", folder, "--label", label)
        ended = cli(*custom(scripted, questions, prompts=1), *saving)
        assert ended.status == 0, ended.err
        sweep = ("bench", "sweep", *custom(scripted, questions, prompts=1)[2:], "--values", "1", *saving)
        assert cli(*sweep).status == 0
    found = sorted(path.name for path in folder.iterdir() if path.name != "sweep.json")
    assert [name.split("-")[:2] for name in found[:2]] == [["a", "b"], ["a", "b"]]
    assert len(found) == 4
    assert {read(folder / name)[0].configuration.label for name in found} == {"a/b", "long" * 100}


def test_details_that_no_file_gets_are_a_warning(cli: Cli, scripted: Scripted, questions: Path) -> None:
    ended = cli(*custom(scripted, questions, prompts=1), "--save-detailed")
    assert ended.status == 0
    assert ended.err == "warning: --save-detailed writes no file without --save-result\n"


def test_more_requests_than_files_may_be_open_are_told(scripted: Scripted, questions: Path) -> None:
    command = [sys.executable, "-m", "loraplex.server", *map(str, custom(scripted, questions, prompts=100))]
    few = (resource.RLIMIT_NOFILE, (40, 80))
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: resource.setrlimit(*few)
    )
    assert "warning: 100 requests may be under way at once, and this process may open 80 files" in ended.stderr
    assert "or give --max-concurrency 16" in ended.stderr
    ended = subprocess.run(
        [*command, "--max-concurrency", "16"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(*few),
    )
    assert (ended.returncode, "warning" in ended.stderr) == (0, False), ended.stderr
    assert "Successful requests:                     100" in ended.stdout


@pytest.mark.parametrize(
    ("model", "warning"),
    [
        ("pairs", "warning: the server sends several tokens in one chunk (96 tokens in 48 chunks)"),
        ("wordy", "12 of 12 answers had more chunks with text than usage has tokens"),
        ("no-usage", "12 of 12 answers came without usage"),
    ],
)
def test_counts_that_differ_are_told(cli: Cli, scripted: Scripted, questions: Path, model: str, warning: str) -> None:
    ended = cli(*custom(scripted, questions), "--model", model)
    assert ended.status == 0
    assert warning in ended.out


def test_tokens_are_counted_here_where_the_server_does_not(cli: Cli, scripted: Scripted, questions: Path) -> None:
    assert (
        "Total generated tokens:                  48\n" in cli(*custom(scripted, questions), "--model", "no-usage").out
    )


def test_chat_is_asked_in_its_words(cli: Cli, scripted: Scripted, questions: Path) -> None:
    ended = cli(*custom(scripted, questions, prompts=1), "--endpoint-type", "openai-chat", "--temperature", "0.5")
    assert ended.status == 0
    (body,) = scripted.bodies
    assert body["messages"][0]["content"].startswith("Question")
    assert (body["max_completion_tokens"], body["temperature"], body["stream"]) == (4, 0.5, True)


def test_warm_ups_go_round_the_adapters_and_do_not_count(cli: Cli, scripted: Scripted, questions: Path) -> None:
    flags = ("--adapters", "steady", "other", "--adapter-mix", "bursts:6", "--num-warmups", "4")
    ended = cli(*custom(scripted, questions), *flags)
    assert "Successful requests:                     12" in ended.out
    assert sorted(body["model"] for body in scripted.bodies[:4]) == ["other", "other", "steady", "steady"]
    assert len(scripted.bodies) == 16


def test_warm_ups_put_one_prompt_of_the_run_into_caches(cli: Cli, scripted: Scripted, questions: Path) -> None:
    flags = ("--adapters", "steady", "other", "tells", "--adapter-mix", "round-robin", "--num-warmups", "6")
    assert cli(*custom(scripted, questions), *flags, "--max-concurrency", "1").status == 0
    warm = {(body["model"], body["prompt"]) for body in scripted.bodies[:6]}
    assert {model for model, _ in warm} == {"steady", "other", "tells"}
    asked = [(body["model"], body["prompt"]) for body in scripted.bodies[6:]]
    assert [each for each in asked if each in warm] == asked[:1]


def test_the_ready_check_waits_for_a_server_that_is_not_ready(cli: Cli, scripted: Scripted, questions: Path) -> None:
    scripted.flaky = 1
    command = (*custom(scripted, questions, prompts=1), "--model", "flaky")
    assert cli(*command, "--ready-check-timeout-sec", "30").status == 0
    scripted.flaky = 100
    ended = cli(*command, "--ready-check-timeout-sec", "1")
    assert ended.status == 1
    assert "http_503: not yet" in ended.err


def test_a_trace_is_replayed_at_its_times(cli: Cli, scripted: Scripted, tmp_path: Path) -> None:
    arrivals = [(0, "steady"), (120, "other"), (120, "steady"), (260, None)]
    lines = [
        {"timestamp": 1000 + time, "input_length": 10, "output_length": 3} | ({"model": model} if model else {})
        for time, model in arrivals
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = cli(
        *("bench", "serve", "--base-url", scripted.url, "--tokenizer", DEMO, "--model", "pairs"),
        *("--dataset-name", "trace", "--dataset-path", path, "--trace-speed", "2"),
        *("--save-result", "--save-detailed", "--result-dir", tmp_path, "--result-filename", "run.json"),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert [each.model for each in run.requests] == ["steady", "other", "steady", "pairs"]
    for request, (time, _) in zip(run.requests, arrivals, strict=True):
        assert request.start >= time / 1000 / 2
    assert all(len(body["prompt"]) == 10 and body["ignore_eos"] for body in scripted.bodies)


def test_a_ramp_up_is_recorded(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    ended = cli(
        *custom(scripted, questions),
        *("--ramp-up-strategy", "linear", "--ramp-up-start-rps", "50", "--ramp-up-end-rps", "53"),
        *("--append-result", "--result-dir", tmp_path),
    )
    assert ended.status == 0, ended.err
    (path,) = tmp_path.glob("openai-ramp-up-linear-50qps-53qps-steady-*.json")
    (run,) = read(path)
    assert [each.rps for each in run.rate_changes] == [50, 51, 52, 53]
    assert run.configuration.ramp_up_strategy == "linear"


def test_metrics_and_percentiles_are_those_asked_for(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    wanted = ("--percentile-metrics", "ttft,client_queue_time", "--metric-percentiles", "50,99.9")
    saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json", "--max-concurrency", "2")
    ended = cli(*custom(scripted, questions), *wanted, *saving)
    assert "P99.9 TTFT (ms):" in ended.out
    assert "P50 Client Queue Time (ms):" in ended.out
    assert "TPOT" not in ended.out.split("By adapter")[0]
    keys = set(json.loads((tmp_path / "run.json").read_text()))
    assert {"p50_ttft_ms", "p99.9_ttft_ms", "mean_client_queue_time_ms"} <= keys
    assert not {key for key in keys if "itl" in key or "e2el" in key or "p99_" in key}


def test_plots_are_written(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    page, folder = tmp_path / "run.html", tmp_path / "plots"
    ended = cli(*custom(scripted, questions), "--html", page, "--plots", folder)
    assert ended.status == 0, ended.err
    assert f"wrote {page}" in ended.out
    assert "<svg" in page.read_text()
    assert [path for path in folder.iterdir() if path.read_bytes().startswith(b"\x89PNG")]
