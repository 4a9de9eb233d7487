"""`loraplex bench serve` and `sweep` as a user types them."""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO
from tests.bench.scripted_server import PROMPT_TOKENS, Scripted
from tests.cli import Cli
from tests.server.process import ServerProcess


def custom(scripted: Scripted, questions: Path, *, prompts: int = 12, tokens: int = 4) -> list[str | Path]:
    flags: list[str | Path] = ["--base-url", scripted.url, "--dataset-name", "custom", "--dataset-path", questions]
    return ["bench", "serve", *flags, "--num-prompts", str(prompts), "--custom-output-len", str(tokens)]


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


def test_the_ready_check_waits_for_a_server_that_is_not_ready(cli: Cli, scripted: Scripted, questions: Path) -> None:
    scripted.flaky = 1
    command = (*custom(scripted, questions, prompts=1), "--model", "flaky")
    assert cli(*command, "--ready-check-timeout-sec", "30").status == 0
    scripted.flaky = 100
    ended = cli(*command, "--ready-check-timeout-sec", "1")
    assert ended.status == 1
    assert "http_503: not yet" in ended.err


def test_cold_adapters_are_unloaded_loaded_and_asked(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    flags = ("--cold", "steady", "absent=other/folder", "--cold-rounds", "1", "--admin-key", "admin")
    saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json")
    ended = cli(*custom(scripted, questions), *flags, *saving)
    assert ended.status == 0, ended.err
    assert scripted.management == [
        # Loaded over itself first: one that cannot be loaded is not unloaded.
        ("PUT", "/v1/adapters/steady", b'{"path":"steady"}', "Bearer admin"),
        ("DELETE", "/v1/adapters/steady", b"", "Bearer admin"),
        ("PUT", "/v1/adapters/steady", b'{"path":"steady"}', "Bearer admin"),
        ("PUT", "/v1/adapters/absent", b'{"path":"other/folder"}', "Bearer admin"),
        ("DELETE", "/v1/adapters/absent", b"", "Bearer admin"),
        ("PUT", "/v1/adapters/absent", b'{"path":"other/folder"}', "Bearer admin"),
    ]
    (run,) = read(tmp_path / "run.json")
    assert [each.adapter for each in run.cold] == ["steady", "absent"]
    assert all(each.load_seconds > 0 and each.cold_ttft_ms > 0 and each.resident_ttft_ms > 0 for each in run.cold)
    assert run.cold[0].switch_ms == run.cold[0].cold_ttft_ms - run.cold[0].resident_ttft_ms
    scripted.management.clear()
    assert cli(*custom(scripted, questions), *flags, "--cold-api", "vllm").status == 0
    assert [call[1] for call in scripted.management] == ["/v1/unload_lora_adapter", "/v1/load_lora_adapter"] * 2


@pytest.mark.parametrize("api", ["loraplex", "vllm"])
def test_adapters_are_loaded_anew_while_the_run_goes_on(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path, api: str
) -> None:
    # The run goes on until a fourth load has begun, so three are over.
    scripted.calls = 7 if api == "vllm" else 4
    flags = ("--model", "awaits-calls", "--churn", "steady", "other=a/folder", "--churn-interval", "0.1")
    page = tmp_path / "run.html"
    saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json", "--html", page)
    ended = cli(*custom(scripted, questions), *flags, "--cold-api", api, "--admin-key", "admin", *saving)
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    assert [each.adapter for each in run.churn][:3] == ["steady", "other", "steady"]
    starts = [each.start for each in run.churn]
    assert starts == sorted(starts)
    assert all(0 < each.start < run.duration and each.seconds > 0 for each in run.churn)
    assert not any(each.error for each in run.churn)
    calls = scripted.management[: 2 if api == "vllm" else 1]
    if api == "vllm":
        assert [call[1] for call in calls] == ["/v1/unload_lora_adapter", "/v1/load_lora_adapter"]
    else:
        assert calls == [("PUT", "/v1/adapters/steady", b'{"path":"steady"}', "Bearer admin")]
    assert "Adapters loaded during the run" in ended.out
    assert "Adapters loaded during the run" in page.read_text()


def test_a_load_that_fails_during_the_run_is_a_warning(cli: Cli, scripted: Scripted, questions: Path) -> None:
    scripted.calls = 2
    flags = ("--model", "awaits-calls", "--churn", "refused", "--churn-interval", "0.1")
    ended = cli(*custom(scripted, questions), *flags)
    assert ended.status == 0, ended.err
    assert "Successful requests:                     12" in ended.out
    assert re.search(
        r"warning: (\d+) of \1 loads during the run failed: PUT /v1/adapters/refused answered 403", ended.out
    )


@pytest.mark.parametrize("cold", [("refused",), ("steady", "refused")])
def test_a_cold_load_that_fails_leaves_the_run(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path, cold: tuple[str, ...]
) -> None:
    saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", "run.json")
    ended = cli(*custom(scripted, questions), "--cold", *cold, "--cold-rounds", "1", *saving)
    assert ended.status == 1
    assert "loraplex: PUT /v1/adapters/refused answered 403: not allowed" in ended.err
    assert ("DELETE", "/v1/adapters/refused") not in {call[:2] for call in scripted.management}
    assert "Successful requests:                     12" in ended.out
    assert "warning: adapters of --cold were not all measured: PUT /v1/adapters/refused" in ended.out
    (run,) = read(tmp_path / "run.json")
    assert run.totals.completed == 12
    assert [each.adapter for each in run.cold] == list(cold[:-1])
    assert run.cold_error.startswith("PUT /v1/adapters/refused answered 403")
    assert not run.metadata


def test_a_run_that_is_too_short_for_a_load_says_so(cli: Cli, scripted: Scripted, questions: Path) -> None:
    ended = cli(*custom(scripted, questions), "--churn", "steady", "--churn-interval", "60")
    assert ended.status == 0, ended.err
    assert "warning: the run was over before any load of --churn" in ended.err


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


@pytest.mark.parametrize("command", ["serve", "sweep"])
@pytest.mark.parametrize("flag", ["--csv", "--html", "--plots", "--result-dir"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(
    cli: Cli, scripted: Scripted, questions: Path, command: str, flag: str
) -> None:
    ended = cli("bench", command, *custom(scripted, questions)[2:], flag, questions / "out", "--save-result")
    assert ended.status == 2
    assert f"{questions / 'out'}" in ended.err
    assert "cannot be written" in ended.err
    assert not scripted.bodies


def test_variables_of_the_server_are_not_meant_for_its_clients(
    cli: Cli, scripted: Scripted, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAPLEX_PORT", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    host, port = scripted.url.removeprefix("http://").split(":")
    command = custom(scripted, questions, prompts=1)
    place = command.index("--base-url")
    command[place : place + 2] = ["--host", host, "--port", port]
    assert cli(*command).status == 0
    assert scripted.headers[0]["authorization"] == "Bearer from-environment"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY")
        assert cli(*custom(scripted, questions, prompts=1)).status == 0
    assert "authorization" not in scripted.headers[1]


def test_a_port_that_the_base_url_overrules_is_told(cli: Cli, scripted: Scripted, questions: Path) -> None:
    command = custom(scripted, questions, prompts=1)
    host, port = scripted.url.removeprefix("http://").split(":")
    assert cli(*command, "--host", host, "--port", port).err == ""
    ended = cli(*command, "--host", "elsewhere", "--port", "9")
    assert ended.status == 0
    assert ended.err == f"warning: --base-url {scripted.url} is asked, not --host elsewhere --port 9\n"
    sweep = ["sweep" if each == "serve" else each for each in command]
    ended = cli(*sweep, "--values", "1", "--port", "9", "--result-dir", questions.parent)
    assert ended.err == f"warning: --base-url {scripted.url} is asked, not --port 9\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--bogus", "1"), "Unknown option"),
        (("--profile",), "--profile: it starts the profiler of vLLM's server"),
        (("--plot-timeline",), "--html FILE writes a page"),
        (("--hf-split", "train"), "--hf-split is of a dataset that is not here"),
        (("--spec_bench_category", "math"), "--spec_bench_category is of a dataset that is not here"),
        (("--concurrency", "4"), "--concurrency is --max-concurrency here"),
        (("--max-seconds", "0"), "Must be > 0"),
        (("--max-seconds", "5e-9", "--num-prompts", "1"), "--max-seconds 5e-09 is over before the first request"),
        (("--probe-request-rate", "-1"), "Must be >= 0"),
        (("--dataset-name", "sonnet"), "sonnet"),
        (("--num-prompts", "0"), "Must be >= 1"),
        (("--request-rate", "0"), "Must be > 0"),
        (("--random-range-ratio", "1"), "Must be < 1"),
        (("--goodput", "ttft"), "--goodput ttft is not NAME:MILLISECONDS"),
        (("--goodput", "speed:1"), "objectives are for ttft, tpot and e2el"),
        (("--goodput", "ttft:-1"), "not negative"),
        (("--goodput", "steady:ttft:inf"), "not infinite"),
        (("--goodput", "steady:200"), "objectives are for ttft, tpot and e2el"),
        (("--goodput", ":ttft:200"), "--goodput :ttft:200 is not NAME:MILLISECONDS"),
        (("--goodput", "other:ttft:200"), "--goodput other:ttft: no request asks other, but steady"),
        (("--adapters", "a", "b", "--goodput", "c:ttft:1"), "no request asks c, but a, b: name one of --adapters"),
        (("--metadata", "novalue"), "--metadata novalue is not KEY=VALUE"),
        (("--header", "=x"), "--header =x is not KEY=VALUE"),
        (("--extra-body", "[1]"), "--extra-body is not a JSON object"),
        (("--percentile-metrics", "ttft,speed"), "take of ttft, tpot, itl, e2el"),
        (("--metric-percentiles", "50,high"), "not a list of numbers"),
        (("--metric-percentiles", "101"), "not a list of numbers"),
        (("--ramp-up-strategy", "linear"), "needs --ramp-up-start-rps"),
        (("--ramp-up-start-rps", "1"), "need --ramp-up-strategy"),
        (("--self-timed",), "--dataset-name trace"),
        (("--cold", "=path"), "--cold =path is not NAME or NAME=PATH"),
        (("--churn", "name="), "--churn name= is not NAME or NAME=PATH"),
        (("--churn", "name", "--churn-interval", "0"), "Must be > 0"),
        (("--adapter-mix", "often", "--adapters", "steady"), "--adapter-mix often is unknown"),
        (("--dataset-name", "trace"), "needs --dataset-path"),
        (("--tokenizer", "no/such/folder/here"), "no tokenizer for no/such/folder/here"),
        (("--skip-tokenizer-init",), "needs a tokenizer"),
        (("--random-input-len", "1"), "raise it"),
        (("--seed", "-1"), "Must be >= 0"),
        (("--base-url", "127.0.0.1:8000"), "give http://127.0.0.1:8000"),
        (("--base-url", "ftp://127.0.0.1:8000"), "give http://127.0.0.1:8000"),
        (("--base-url", "http://127.0.0.1:8000/v1"), "ends with /v1"),
        (("--base-url", "http://127.0.0.1:80000"), "out of range"),
    ],
)
def test_bad_flags_are_refused_with_status_2(
    cli: Cli, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    defaults = () if "--tokenizer" in flags or "--skip-tokenizer-init" in flags else ("--tokenizer", DEMO)
    server = () if "--base-url" in flags else ("--base-url", scripted.url)
    ended = cli("bench", "serve", *server, *defaults, *flags)
    assert ended.status == 2, ended
    assert reason in " ".join((ended.err + ended.out).replace("│", " ").split())
    assert not scripted.bodies


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


def test_the_name_of_a_model_that_no_hub_has_is_not_looked_up(
    cli: Cli, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenizers.Tokenizer.from_pretrained", lambda _: pytest.fail("asked the hub"))
    ended = cli("bench", "serve", "--base-url", scripted.url)
    assert ended.status == 2
    assert "no tokenizer for steady" in ended.err
    assert "Give --tokenizer" in ended.err


def test_prompts_that_no_memory_holds_are_too_many(cli: Cli, scripted: Scripted) -> None:
    ended = cli("bench", "serve", "--base-url", scripted.url, "--tokenizer", DEMO, "--random-input-len", str(10**13))
    assert ended.status == 1
    assert "not enough memory" in ended.err


def test_a_server_that_is_not_there_is_named(cli: Cli) -> None:
    ended = cli("bench", "serve", "--base-url", "http://127.0.0.1:9", "--tokenizer", DEMO)
    assert ended.status == 1
    assert "http://127.0.0.1:9/v1/models does not answer" in ended.err
    ended = cli(
        "bench", "serve", "--base-url", "http://127.0.0.1:9", "--tokenizer", DEMO, "--model", "a", "--num-prompts", "2"
    )
    assert ended.status == 1
    assert "http://127.0.0.1:9 cannot be reached" in ended.err


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
