"""`loraplex bench serve --multi-turn`: conversations that are had with a server."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from loraplex.bench.results.result import Request, Run
from loraplex.bench.results.result_file import read
from tests.bench.conftest import DEMO, saving
from tests.bench.scripted_server import PROMPT_TOKENS, Scripted
from tests.bench.test_interruption import interrupted
from tests.cli import Cli
from tests.server.process import ServerProcess

SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": " 0 1 2 3"}
"""That of the scripted server, of four tokens."""
ROUNDING = 1e-6
"""Seconds, of sums of times."""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def talk(*questions: str, **fields: object) -> dict[str, Any]:
    """A conversation as a file has it, with answers that no server gave."""
    messages = [SYSTEM]
    for each in questions:
        messages += [user(each), {"role": "assistant", "content": "What the file says."}]
    return {"messages": messages, **fields}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Six conversations of three turns."""
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(talk(*(f"{turn} of {index}" for turn in "abc"))) + "\n" for index in range(6)))
    return path


def command(scripted: Scripted, talks: Path, *, model: str = "steady") -> list[str | Path]:
    flags: list[str | Path] = ["--base-url", scripted.url, "--model", model, "--backend", "openai-chat", "--multi-turn"]
    flags += ["--dataset-name", "custom", "--dataset-path", talks, "--disable-shuffle", "--custom-output-len", "4"]
    return ["bench", "serve", *flags, "--num-prompts", "6"]


def saved(folder: Path) -> Run:
    (run,) = read(folder / "run.json")
    return run


def by_conversation(run: Run) -> list[list[Request]]:
    found: dict[int | None, list[Request]] = defaultdict(list)
    for each in run.requests:
        found[each.conversation].append(each)
    return list(found.values())


def most_at_once(spans: list[tuple[float, float]]) -> int:
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(sum(change for _, change in events[: place + 1]) for place in range(len(events)))


def test_each_turn_has_the_answers_of_the_server_before_it(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    ended = cli(*command(scripted, talks), "--request-id-prefix", "r-", *saving(tmp_path))
    assert (ended.status, ended.err) == (0, "")
    asked: dict[str, list[Any]] = defaultdict(list)
    for header, body in zip(scripted.headers, scripted.bodies, strict=True):
        asked[header["x-session-id"]].append((header["x-request-id"], body["messages"]))
    assert set(asked) == {f"r-{index}" for index in range(6)}
    assert asked["r-4"] == [
        ("r-4-1", [SYSTEM, user("a of 4")]),
        ("r-4-2", [SYSTEM, user("a of 4"), ANSWER, user("b of 4")]),
        ("r-4-3", [SYSTEM, user("a of 4"), ANSWER, user("b of 4"), ANSWER, user("c of 4")]),
    ]
    assert all(len(turns) == 3 for turns in asked.values())


def test_turns_are_told_beside_each_other(cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path) -> None:
    out = ("--csv", tmp_path / "run.csv", "--html", tmp_path / "run.html", "--save-detailed")
    ended = cli(*command(scripted, talks, model="remembers"), *saving(tmp_path), *out)
    assert ended.status == 0, ended.err
    rows = {line[:14].strip(): line[14:].split() for line in ended.out.splitlines() if line.startswith("turn")}
    assert [rows[name][:4] for name in ("turn 1", "turn 2", "turn 3")] == [
        ["6", "0", "7", "0%"],
        ["6", "0", "7", "71%"],
        ["6", "0", "7", "71%"],
    ]
    assert rows["turns 2 to 3"][:4] == ["12", "0", "7", "71%"]
    run = saved(tmp_path)
    assert run.conversations is not None
    assert (run.conversations.num_conversations, run.conversations.conversations_completed) == (6, 6)
    assert (run.conversations.conversations_failed, run.conversations.turns_given_up) == (0, 0)
    assert run.conversations.avg_turns_completed == 3
    assert run.conversations.avg_conversation_duration_ms > 0
    assert [each.completed for each in run.turns] == [6, 6, 6]
    assert [each.total_cached_tokens for each in run.turns] == [0, 6 * (PROMPT_TOKENS - 2), 6 * (PROMPT_TOKENS - 2)]
    assert run.later_turns is not None
    assert (run.later_turns.completed, run.totals.completed) == (12, 18)
    document = json.loads((tmp_path / "run.json").read_text())
    assert [each["turn_index"] for each in document["per_turn_metrics"]] == [0, 1, 2]
    assert document["per_turn_metrics"][1]["mean_ttft_ms"] == run.turns[1].latencies["ttft"].mean
    assert (document["conversations"], document["turns"]) == ([index // 3 for index in range(18)], [1, 2, 3] * 6)
    with (tmp_path / "run.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(each["conversation"], each["turn"]) for each in lines[:4]] == [
        ("0", "1"),
        ("0", "2"),
        ("0", "3"),
        ("1", "1"),
    ]
    assert lines[1]["cached_tokens"] == str(PROMPT_TOKENS - 2)
    page = (tmp_path / "run.html").read_text()
    assert "By turn" in page
    assert "Of 6 conversations 6 completed and 0 failed" in page


def test_a_server_that_tells_nothing_of_its_cache_has_no_column_of_zeros(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    ended = cli(*command(scripted, talks), *saving(tmp_path))
    assert saved(tmp_path).totals.total_cached_tokens is None
    assert "from the prefix cache" not in ended.out


def test_a_conversation_keeps_its_adapter_and_ends_with_a_turn_that_fails(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    mix = ("--adapters", "steady", "tires", "--adapter-mix", "round-robin", "--save-detailed")
    ended = cli(*command(scripted, talks), *mix, *saving(tmp_path))
    assert ended.status == 0
    assert "warning: 3 of 6 conversations ended with a turn that failed: 3 turns after it were not sent" in ended.out
    run = saved(tmp_path)
    assert [[each.model for each in turns] for turns in by_conversation(run)] == [["steady"] * 3, ["tires"] * 2] * 3
    assert run.conversations is not None
    assert (run.conversations.conversations_completed, run.conversations.conversations_failed) == (3, 3)
    assert (run.conversations.turns_given_up, run.unsent, run.unfinished) == (3, 0, 0)
    assert [(each.completed, each.failed) for each in run.turns] == [(6, 0), (3, 3), (3, 0)]
    assert run.totals.errors_by_kind == {"http_500": 3}
    assert (run.adapters["steady"].completed, run.adapters["tires"].completed) == (9, 3)


def test_no_more_conversations_than_asked_for_are_had_at_once(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    limits = (
        "--multi-turn-concurrency",
        "2",
        "--max-concurrency",
        "1",
        "--multi-turn-delay-ms",
        "20",
        "--save-detailed",
    )
    ended = cli(*command(scripted, talks), *limits, *saving(tmp_path))
    assert ended.status == 0, ended.err
    run = saved(tmp_path)
    turns = by_conversation(run)
    for one, two, three in turns:
        assert two.start >= one.start + one.latency + 0.02 - ROUNDING
        assert three.start >= two.start + two.latency + 0.02 - ROUNDING
        assert two.queue < two.start - one.start - one.latency  # the pause is no waiting
    assert most_at_once([(some[0].start, some[-1].start + some[-1].latency) for some in turns]) <= 2
    assert most_at_once([(each.start, each.start + each.latency) for each in run.requests]) == 1
    assert (run.configuration.multi_turn_concurrency, run.configuration.max_concurrency) == (2, 1)


def test_max_concurrency_is_of_conversations_where_nothing_else_is(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    ended = cli(*command(scripted, talks), "--max-concurrency", "1", "--save-detailed", *saving(tmp_path))
    assert ended.status == 0, ended.err
    # One after the other: none begins before the one before it has ended.
    sessions = [header["x-session-id"] for header in scripted.headers]
    assert sessions == [name for name in dict.fromkeys(sessions) for _ in range(3)]


def test_a_rate_is_of_conversations(cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path) -> None:
    rate = ("--request-rate", "50", "--burstiness", "inf", "--save-detailed")
    ended = cli(*command(scripted, talks), *rate, *saving(tmp_path))
    assert ended.status == 0, ended.err
    for index, turns in enumerate(by_conversation(saved(tmp_path)), 1):
        assert len(turns) == 3
        assert turns[0].start >= index / 50 - ROUNDING


def test_after_the_time_to_send_no_other_turn_is_sent(
    cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path
) -> None:
    ended = cli(*command(scripted, talks, model="dawdles"), "--max-seconds", "2", *saving(tmp_path))
    assert ended.status == 0, ended.err
    run = saved(tmp_path)
    assert run.conversations is not None
    assert run.conversations.conversations_completed == run.conversations.conversations_failed == 0
    assert (run.totals.completed, run.unsent) == (6, 12)


def test_what_a_model_thinks_is_not_said_again(cli: Cli, scripted: Scripted, talks: Path) -> None:
    assert cli(*command(scripted, talks, model="thinks"), "--max-concurrency", "1").status == 0
    assert scripted.bodies[1]["messages"] == [SYSTEM, user("a of 0"), ANSWER, user("b of 0")]


def test_an_interrupted_conversation_is_told(scripted: Scripted, talks: Path, tmp_path: Path) -> None:
    flags = command(scripted, talks, model="stalls")[1:]
    ended = interrupted([*flags, "--max-concurrency", "2", *saving(tmp_path)], lambda: len(scripted.bodies) == 4)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted: only the 2 of 18 requests that had ended by then count" in ended.stdout
    run = saved(tmp_path)
    assert run.conversations is not None
    assert run.conversations.conversations_completed == run.conversations.conversations_failed == 0
    assert (run.interrupted, run.unfinished, run.unsent) == (True, 16, 0)


def test_runs_of_conversations_are_put_side_by_side(cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path) -> None:
    for label, pause in (("quick", "0"), ("slow", "5")):
        flags = ("--multi-turn-delay-ms", pause, "--multi-turn-concurrency", "2", "--label", label)
        saving = ("--save-result", "--result-dir", tmp_path, "--result-filename", f"{label}.json")
        assert cli(*command(scripted, talks), *flags, *saving).status == 0
    ended = cli("bench", "compare", tmp_path / "quick.json", tmp_path / "slow.json")
    assert ended.status == 0, ended.err
    assert "2 conversations at once" in ended.out
    assert "TTFT median, first turns" in ended.out
    assert "TTFT median, later turns" in ended.out
    assert "6 of up to 3 turns, 5 ms between them, 2 at once" in ended.out + ended.err


def test_a_sweep_raises_the_number_of_conversations(cli: Cli, scripted: Scripted, talks: Path, tmp_path: Path) -> None:
    steps = ("--values", "1", "2", "--result-dir", tmp_path / "out")
    ended = cli("bench", "sweep", *command(scripted, talks)[2:], *steps)
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "out" / "openai-chat-concurrency2.json")
    assert run.configuration.multi_turn_concurrency == 2
    assert run.conversations is not None
    assert run.conversations.conversations_completed == 6
    ended = cli("bench", "sweep", *command(scripted, talks)[2:], *steps, "--multi-turn-concurrency", "2")
    assert ended.status == 2
    assert "leave out --multi-turn-concurrency" in ended.err


@pytest.mark.slow
def test_our_server_knows_a_conversation_again(cli: Cli, demo: ServerProcess, tmp_path: Path) -> None:
    ended = cli(
        *("bench", "serve", "--base-url", demo.url, "--backend", "openai-chat", "--tokenizer", DEMO),
        *("--adapters", "travel", "json", "--adapter-mix", "round-robin", "--seed", "711", "--num-prompts", "4"),
        *("--multi-turn", "--random-input-len", "40", "--per-turn-input-len", "10", "--random-output-len", "6"),
        *("--max-concurrency", "1", "--save-detailed", *saving(tmp_path)),
    )
    assert ended.status == 0, ended.err
    run = saved(tmp_path)
    assert run.conversations is not None
    assert run.conversations.conversations_completed == 4
    assert [each.completed for each in run.turns] == [4, 4, 4]
    lengths = [each.total_input_tokens for each in run.turns]
    assert lengths == sorted(lengths)
    assert run.turns[0].total_cached_tokens is not None
    assert run.later_turns is not None
    assert run.later_turns.total_cached_tokens is not None
    assert run.later_turns.total_cached_tokens > run.later_turns.total_input_tokens / 4
