"""Flags of `loraplex bench` that are refused, overrule each other or come from the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.conftest import DEMO, custom
from tests.bench.scripted_server import Scripted
from tests.cli import Cli


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


@pytest.mark.parametrize(
    "command",
    [("serve", "--model", "x"), ("sweep", "--tokenizer", "x"), ("engine", str(DEMO))],
    ids=lambda each: each[0],
)
def test_a_command_whose_libraries_are_not_installed_says_what_installs_them(command: tuple[str, ...]) -> None:
    code = "import sys; sys.modules['aiohttp'] = None\nfrom loraplex.server.cli import main; main()"

    def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, "bench", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    helped = ended(command[0], "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    done = ended(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("loraplex: ")
    assert done.stderr.endswith("; install loraplex[bench]\n")
