"""`loraplex bench serve` with adapters that are loaded before or during the run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loraplex.bench.results.result_file import read
from tests.bench.conftest import custom
from tests.bench.scripted_server import Scripted
from tests.cli import Cli


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
