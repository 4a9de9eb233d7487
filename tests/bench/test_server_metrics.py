"""`--server-metrics`: what the server's own metrics say of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex.bench.load.server_metrics import parsed
from loraplex.bench.results.result_file import read
from loraplex.bench.results.server_metrics import ServerMetrics
from tests.bench.conftest import DEMO, saving
from tests.bench.scripted_server import Scripted
from tests.bench.test_interruption import interrupted
from tests.cli import Cli
from tests.server.process import ServerProcess

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} %(preemptions)d
vllm:prefix_cache_queries_total{engine="0",model_name="m"} %(queries)d
vllm:prefix_cache_hits_total{engine="0",model_name="m"} %(hits)d
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 3.0
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf",model_name="m"} %(count)d
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} %(count)d
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} %(seconds)f
python_info{version="3.12"} 1.0
"""


def exposing(scripted: Scripted) -> None:
    """Before the first request there were 100 others, and each request then waits for 0.5 s."""

    def exposition() -> str:
        count = sum("prompt" in body for body in scripted.bodies)
        return VLLM % {
            "preemptions": 5 + count // 2,
            "queries": 1000 + 20 * count,
            "hits": 300 + 5 * count,
            "count": 100 + count,
            "seconds": 9.0 + 0.5 * count,
        }

    scripted.exposition = exposition


def command(scripted: Scripted, questions: Path, *, model: str = "steady") -> list[str | Path]:
    flags: list[str | Path] = ["--base-url", scripted.url, "--model", model, "--dataset-name", "custom"]
    return ["bench", "serve", *flags, "--dataset-path", questions, "--num-prompts", "4", "--custom-output-len", "4"]


def seen(folder: Path) -> ServerMetrics:
    (run,) = read(folder / "run.json")
    assert run.server_metrics is not None
    return run.server_metrics


def test_a_run_is_told_with_what_the_server_says_of_it(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    exposing(scripted)
    flags = ("--server-metrics", "--api-key", "k", "--html", tmp_path / "run.html", *saving(tmp_path))
    ended = cli(*command(scripted, questions, model="awaits-looks"), *flags)
    assert (ended.status, ended.err) == (0, "")
    found = seen(tmp_path)
    assert (found.url, found.error) == (f"{scripted.url}/metrics", "")
    assert found.times == sorted(found.times)
    assert len(found.times) >= 2
    running, waiting, cache = (found.gauges[key] for key in ("requests_running", "requests_waiting", "kv_cache_usage"))
    assert (running.mean, running.max) == (5.0, 5.0)  # of both engines
    assert (waiting.max, cache.max) == (7.0, 0.5)  # of the fuller engine
    assert len(running.values) == len(found.times)
    assert found.counters == {"preemptions": 2, "prefix_cache_hits": 20, "prefix_cache_queries": 80}
    assert found.means_ms == {"queue": pytest.approx(500)}
    for line in (
        *("Requests running, mean (most):           5.0 (5)", "KV cache used, mean (most):              50.0% (50.0%)"),
        *("Preemptions:                             2", "Prefix cache hits (tokens):              20 of 80 (25%)"),
        "Time in the queue, mean (ms):            500.00",
    ):
        assert line in ended.out
        title, value = line.split(":")
        assert f"<dt>{title}:</dt><dd>{value.strip()}</dd>" in (tmp_path / "run.html").read_text()
    assert all(each["authorization"] == "Bearer k" for each in scripted.headers)


def test_nothing_is_looked_at_unless_asked_for(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    exposing(scripted)
    assert cli(*command(scripted, questions), *saving(tmp_path)).status == 0
    (run,) = read(tmp_path / "run.json")
    assert (run.server_metrics, scripted.looks) == (None, 0)


@pytest.mark.parametrize(
    ("exposition", "reason"),
    [
        (None, "it answers 404"),
        ("<html>", "it has none of the metrics that are known here"),
        ("vllm:num_requests_running lots\n", "could not convert string to float"),
    ],
)
def test_a_server_without_metrics_fails_no_run(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path, exposition: str | None, reason: str
) -> None:
    if exposition is not None:
        scripted.exposition = lambda: exposition
    ended = cli(*command(scripted, questions), "--server-metrics", *saving(tmp_path))
    assert ended.status == 0
    assert "Successful requests:                     4" in ended.out
    assert f"warning: no metrics of the server, {scripted.url}/metrics: {reason}" in ended.out
    assert (seen(tmp_path).gauges, seen(tmp_path).counters) == ({}, {})
    assert scripted.looks == 1


def test_metrics_may_be_elsewhere_where_no_key_is_sent(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    exposing(scripted)
    elsewhere = f"{scripted.url.replace('127.0.0.1', 'localhost')}/metrics"
    flags = ("--server-metrics-url", elsewhere, "--api-key", "k", *saving(tmp_path))
    assert cli(*command(scripted, questions), *flags).status == 0
    assert seen(tmp_path).counters["prefix_cache_queries"] == 80
    assert [each for each in scripted.headers if each["host"].startswith("localhost")]
    assert all("authorization" not in each for each in scripted.headers if each["host"].startswith("localhost"))
    ended = cli(*command(scripted, questions), "--server-metrics-url", "localhost:9")
    assert ended.status == 2
    assert "give http://HOST:PORT/metrics" in ended.err


def test_an_interrupted_run_has_them_too(scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    exposing(scripted)
    mix = ("--adapters", "steady", "hangs", "--adapter-mix", "round-robin", "--max-concurrency", "1")
    flags = command(scripted, questions)[1:]
    ended = interrupted([*flags, *mix, "--server-metrics", *saving(tmp_path)], lambda: len(scripted.bodies) == 2)
    assert ended.returncode == 130, ended.stderr
    assert seen(tmp_path).counters["prefix_cache_queries"] == 40


def test_a_counter_that_began_anew_is_counted_from_there(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    scripted.exposition = lambda: f"vllm:num_preemptions_total {3 if scripted.bodies else 50}\n"
    assert cli(*command(scripted, questions), "--server-metrics", *saving(tmp_path)).status == 0
    assert seen(tmp_path).counters == {"preemptions": 3}


def test_only_the_lines_that_count_are_parsed() -> None:
    text = VLLM % {"preemptions": 1, "queries": 2, "hits": 3, "count": 4, "seconds": 5}
    found = parsed(text + "vllm:prefix_cache_hits_total_of_another{} not a number\n")
    assert found["vllm:kv_cache_usage_perc"] == [0.25, 0.5]
    assert not [name for name in found if "bucket" in name or "python" in name or "another" in name]


@pytest.mark.slow
def test_our_server_tells_its_cache_and_its_queue(cli: Cli, demo: ServerProcess, tmp_path: Path) -> None:
    ended = cli(
        *("bench", "serve", "--base-url", demo.url, "--tokenizer", DEMO, "--adapters", "travel", "--num-prompts", "6"),
        *(
            "--random-input-len",
            "20",
            "--random-output-len",
            "8",
            "--random-prefix-len",
            "20",
            "--max-concurrency",
            "1",
        ),
        *("--server-metrics", "--save-detailed", *saving(tmp_path)),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    found = run.server_metrics
    assert found is not None
    assert found.counters["prefix_cache_queries"] == run.totals.total_input_tokens
    assert found.counters["prefix_cache_hits"] == run.totals.total_cached_tokens
    assert set(found.means_ms) == {"queue", "ttft"}
    assert 0 < found.means_ms["ttft"] <= 1000 * max(each.ttft for each in run.requests)
