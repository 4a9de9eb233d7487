"""Files of results: vLLM's keys, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex.bench.errors import ResultInvalid
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.document import document
from loraplex.bench.results.result import (
    ChurnLoad,
    ClientCost,
    ColdLoad,
    Fairness,
    RateChange,
    Request,
    Run,
    SteadyState,
    TokenCheck,
)
from loraplex.bench.results.result_file import read, write
from loraplex.bench.results.statistics import summarize, timeline

# What `vllm bench serve --save-result --percentile-metrics ttft,tpot,itl,e2el --max-concurrency 8` writes: `main_async`
# and `benchmark` in vllm/benchmarks/serve.py at commit 009e6d4a1cd6ba3fb2a9fc00f4ec06f5297232a1.
SETUP = ["date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"]
TRAFFIC = ["request_rate", "burstiness", "max_concurrency"]
FIGURES = [
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "latencies",
    "queue_times",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
]
STATISTICS = [
    f"{name}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for name in ("mean", "median", "std", "p99")
]
DETAILED = ["input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"]
RAMP_UP = ["ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "rps_change_events"]
OURS = {"adapters", "fairness", "errors_by_kind", "token_check", "client", "timeline", "cold"}
OURS |= {"steady_state", "cold_error", "churn", "interrupted", "unfinished", "unsent", "configuration"}
OURS |= {"total_cached_tokens"}
OURS_DETAILED = {"models", "error_kinds", "finish_reasons", "usage_tokens"}
OURS_DETAILED |= {"cached_tokens", "conversations", "turns", "thinking"}

REQUESTS = [
    Request(model="a", start=0.0, ttft=0.1, itls=[0.2, 0.3], latency=0.6, input_tokens=5, output_tokens=3, text="x"),
    Request(model="b", start=0.25, queue=0.125, error="Too many", error_kind="http_429:queue_full", input_tokens=5),
]


def made(**changes: object) -> Run:
    def summary(requests: list[Request]):  # type: ignore[no-untyped-def]
        return summarize(
            requests, 2.0, metrics=("ttft", "tpot", "itl", "e2el"), percentiles=(99.0,), objectives={"ttft": 50.0}
        )

    run = Run(
        configuration=Configuration(
            date="20261121-120000",
            model_id="demo",
            num_prompts=2,
            max_concurrency=8,
            url="http://x/v1/completions",
            server={"lane": "batched"},
            adapters=["a", "b"],
            goodput={"ttft": 50.0, "a:ttft": 20.0},
        ),
        metadata={"version": "0.3"},
        duration=2.0,
        totals=summary(REQUESTS),
        adapters={"a": summary(REQUESTS[:1]), "b": summary(REQUESTS[1:])},
        fairness=Fairness(0.9, 0.8, 1.5),
        tokens=TokenCheck(3, 3),
        client=ClientCost(0.5, 2.0, 100),
        timeline=timeline(REQUESTS, 2.0),
        steady_state=SteadyState(0.25, 1.5, 2.0, 1.0),
        cold=[ColdLoad("a", 0.25, 30.0, 10.0)],
        churn=[ChurnLoad("a", 1.5, 0.125), ChurnLoad("b", 3.0, 0.25, "not found")],
        requests=REQUESTS,
    )
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def test_a_file_of_vllms_client_for_conversations_is_read(tmp_path: Path) -> None:
    # What `vllm-bench --multi-turn --save-result` writes: `build_multi_turn_result_json` in rust/src/bench.
    figures: dict[str, object] = {
        **dict.fromkeys(STATISTICS, 1.0),
        **{"completed": 4, "failed": 0, "total_input_tokens": 40, "total_output_tokens": 20},
        **{"request_throughput": 2.0, "output_throughput": 10.0, "total_token_throughput": 30.0},
    }
    document = figures | {
        **{"date": "20261121-120000", "mode": "multi_turn", "backend": "openai-chat", "model_id": "m", "duration": 2.0},
        **{"num_conversations": 2, "conversations_completed": 2, "conversations_failed": 0},
        **{"avg_turns_completed": 2.0, "avg_conversation_duration_ms": 5.0},
        "per_turn_metrics": [{"turn_index": index, "num_samples": 2} | figures for index in range(2)],
    }
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    (run,) = read(tmp_path / "theirs.json")
    assert run.conversations is not None
    assert (run.conversations.conversations_completed, run.conversations.turns_given_up) == (2, 0)
    assert [each.latencies["ttft"].median for each in run.turns] == [1.0, 1.0]


def test_a_file_has_vllms_keys_and_ours() -> None:
    keys = set(document(made(), detailed=False))
    assert keys == {*SETUP, "version", *TRAFFIC, *FIGURES, *STATISTICS, *OURS}


def test_a_detailed_file_has_the_lists_besides() -> None:
    found = document(made())
    assert set(found) == {*SETUP, "version", *TRAFFIC, *FIGURES, *STATISTICS, *DETAILED, *OURS, *OURS_DETAILED}
    assert {len(found[key]) for key in (*DETAILED, *OURS_DETAILED, "latencies", "queue_times")} == {2}


def test_a_ramp_up_is_told_as_vllm_does() -> None:
    run = made(rate_changes=[RateChange(1, "2026-11-21T12:00:00")])
    run.configuration.ramp_up_strategy = "linear"
    assert set(RAMP_UP) <= set(document(run))
    assert document(run)["rps_change_events"] == [{"rps": 1, "timestamp": "2026-11-21T12:00:00"}]


def test_an_infinite_rate_is_written_as_a_word(tmp_path: Path) -> None:
    write(made(), tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["request_rate"], found["burstiness"]) == ("inf", 1.0)
    assert found["client"]["core_share"] == 0.25
    assert found["cold"][0]["switch_ms"] == 20.0
    assert found["adapters"]["b"]["errors_by_kind"] == {"http_429:queue_full": 1}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.json"
    write(made(), path, detailed=True)
    assert read(path) == [made()]
    write(made(), path)
    assert read(path) == [made(requests=[])]


def test_appended_runs_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    for label in ("one", "two"):
        run = made()
        run.configuration.label = label
        write(run, path, append=True)
    assert [each.configuration.label for each in read(path)] == ["one", "two"]


def test_vllms_own_files_are_read(tmp_path: Path) -> None:
    """With its keys alone, and without some that older versions did not write."""
    found = document(made())
    theirs = {
        key: value for key, value in found.items() if key not in OURS | OURS_DETAILED | {"latencies", "rtfx", "failed"}
    }
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(theirs))
    (run,) = read(path)
    assert run.totals.latencies == made().totals.latencies
    assert run.metadata == {"version": "0.3"}
    assert run.adapters == {}
    assert [each.latency for each in run.requests] == [pytest.approx(0.6), 0.0]
    assert [each.error_kind for each in run.requests] == [None, "error"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "truncated"), ("[1]", "Expected `object`"), ('{"a": 1}', "no 'duration'"), ('{"a": 1}\n{"a": 2}', "line 1")],
)
def test_another_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ResultInvalid, match=r"other\.json.*" + reason):
        read(path)
    with pytest.raises(ResultInvalid, match="No such file"):
        read(tmp_path / "none.json")
