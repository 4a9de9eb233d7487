"""The part of a run in which every place is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loraplex.bench.load.benchmark import reckon
from loraplex.bench.load.driver import Measured
from loraplex.bench.load.options import Report
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import ClientCost, Request, SteadyState
from loraplex.bench.results.result_file import read, write
from loraplex.bench.results.steady_state import steady_state
from loraplex.bench.results.summary import text
from tests.bench.conftest import custom, saving
from tests.bench.scripted_server import DAWDLING_SECONDS, Scripted
from tests.bench.test_statistics import request
from tests.cli import Cli

# Four requests for two places. Times are fractions of two, so sums are exact.
CLOSED = [
    request(start=0.0, ttft=0.5, itls=(0.5, 0.5, 0.5)),  # tokens at 0.5, 1, 1.5 and 2 s
    request(start=0.0, ttft=0.5, itls=(0.5,)),  # 0.5, 1
    # The client needs a quarter of a second to hand on the place of the second.
    request(start=1.25, queue=1.25, ttft=0.5, itls=(0.5, 0.5, 0.5)),  # 1.75, 2.25, 2.75, 3.25
    request(start=2.25, queue=2.25, ttft=0.25),  # 2.5
]


def two_places(**asked: Any) -> Configuration:
    return Configuration(max_concurrency=2, **asked)


def test_it_goes_until_a_place_stays_empty() -> None:
    assert steady_state(CLOSED, two_places()) == SteadyState(0.0, 2.5, 9 / 2.5, 3 / 2.5)


def test_one_place_is_taken_to_the_end() -> None:
    assert steady_state(CLOSED, Configuration(max_concurrency=1)) == SteadyState(0.0, 3.25, 11 / 3.25, 4 / 3.25)


def test_without_a_limit_it_goes_until_a_tenth_has_ended() -> None:
    requests = [request(start=0.0, ttft=float(1 + index)) for index in range(10)]
    assert steady_state(requests, Configuration()) == SteadyState(0.0, 2.0, 1.0, 1.0)


def test_what_failed_takes_a_place_and_gives_no_tokens() -> None:
    requests = [*CLOSED[:1], request(start=0.0, ttft=0.5, itls=(0.5,), error_kind="broken_stream"), *CLOSED[2:]]
    assert steady_state(requests, two_places()) == SteadyState(0.0, 2.5, 7 / 2.5, 2 / 2.5)


def test_a_chunk_counts_as_its_tokens() -> None:
    pairs = [request(start=0.0, ttft=0.5, itls=(0.5, 0.5, 0.5), output_tokens=8), request(start=0.0, ttft=1.0)]
    assert steady_state(pairs, two_places()) == SteadyState(0.0, 1.0, 5.0, 1.0)
    silent = [request(start=0.0, ttft=1.0, text="", output_tokens=3) for _ in range(2)]
    assert steady_state(silent, two_places()) == SteadyState(0.0, 1.0, 6.0, 2.0)


def test_a_conversation_has_its_place_while_its_user_thinks() -> None:
    requests = [
        request(start=0.0, ttft=0.5, conversation=0, turn=1),
        request(start=1.5, ttft=0.5, conversation=0, turn=2),  # after a pause of a second
        request(start=2.25, queue=2.25, ttft=0.75, conversation=1),
    ]
    asked = Configuration(multi_turn=True, multi_turn_concurrency=1, max_concurrency=8)
    assert steady_state(requests, asked) == SteadyState(0.0, 3.0, 1.0, 1.0)
    # As requests by themselves there is no second without a break.
    alone = [msgspec.structs.replace(each, conversation=None) for each in requests[:2]]
    assert steady_state(alone, Configuration(max_concurrency=1)) is None


def test_of_several_times_it_is_the_longest() -> None:
    requests = [
        request(start=start, ttft=ttft) for start, ttft in ((0.0, 1.0), (0.0, 1.0), (4.0, 2.0), (4.5, 3.0), (9.0, 9.0))
    ]
    # At 6 s one token comes and one request ends.
    assert steady_state(requests, two_places(request_rate=1.0)) == SteadyState(4.5, 1.5, 1 / 1.5, 1 / 1.5)


@pytest.mark.parametrize(
    ("requests", "asked"),
    [
        ([], Configuration(max_concurrency=2)),
        (CLOSED[:1], Configuration(max_concurrency=2)),
        (CLOSED, Configuration(max_concurrency=5)),
        ([request(ttft=0.75), request(ttft=0.75)], Configuration(max_concurrency=2)),
        (CLOSED, Configuration(request_rate=4.0)),
        (CLOSED, Configuration(ramp_up_strategy="linear")),
        (CLOSED, Configuration(dataset="trace")),
    ],
    ids=["nothing", "one", "never-full", "short", "rate", "ramp-up", "trace"],
)
def test_there_may_be_none(requests: list[Request], asked: Configuration) -> None:
    assert steady_state(requests, asked) is None


def test_it_is_told_and_kept(tmp_path: Path) -> None:
    run = reckon(two_places(), Measured(CLOSED, 3.25, ClientCost(), []), Report())
    assert "\nSteady output token throughput (tok/s):  3.60 from 0.00 to 2.50 s\n" in text(run)
    write(run, tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    told = {"begin_s": 0.0, "duration_s": 2.5, "output_throughput": 3.6, "request_throughput": 1.2}
    assert found["steady_state"] == told
    assert read(tmp_path / "run.json")[0].steady_state == SteadyState(**told)


def test_an_interrupted_run_has_none(tmp_path: Path) -> None:
    run = reckon(two_places(), Measured(CLOSED, 3.25, ClientCost(), [], unfinished=1), Report())
    assert run.steady_state is None
    assert "Steady" not in text(run)
    write(run, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["steady_state"] is None
    assert read(tmp_path / "run.json")[0].steady_state is None


def test_a_server_is_measured_while_its_places_are_taken(cli: Cli, scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    models = ("dawdles", "dawdles", "steady")
    path.write_text("".join(json.dumps({"prompt": "a question", "model": model}) + "\n" for model in models))
    ended = cli(
        *("bench", "serve", "--base-url", scripted.url, "--model", "steady", "--dataset-name", "custom"),
        *("--dataset-path", path, "--disable-shuffle", "--custom-output-len", "4", "--num-prompts", "3"),
        *("--max-concurrency", "2", "--save-detailed", *saving(tmp_path)),
    )
    assert ended.status == 0, ended.err
    assert "Steady output token throughput (tok/s):" in ended.out
    (run,) = read(tmp_path / "run.json")
    found = run.steady_state
    assert found is not None
    # The last place but one falls empty when the last request but one ends.
    ends = sorted(each.start + each.latency for each in run.requests)
    assert found.begin_s == sorted(each.start - each.queue for each in run.requests)[1]
    assert found.begin_s + found.duration_s == pytest.approx(ends[1])
    assert DAWDLING_SECONDS - 0.1 < ends[1] < run.duration
    came = [each.start + each.ttft + sum(each.itls[:index]) for each in run.requests for index in range(4)]
    tokens = sum(time < ends[1] + 1e-9 for time in came)
    assert tokens >= 4
    assert found.output_throughput * found.duration_s == pytest.approx(tokens)
    assert found.request_throughput * found.duration_s == pytest.approx(2)


def test_fewer_requests_than_places_are_no_steady_state(
    cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    ended = cli(*custom(scripted, questions, prompts=3), "--max-concurrency", "4", *saving(tmp_path))
    assert ended.status == 0, ended.err
    assert "Steady" not in ended.out
    assert read(tmp_path / "run.json")[0].steady_state is None
