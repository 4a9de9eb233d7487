"""Flags of conversations: what does not go together, and what other clients call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.scripted_server import Scripted
from tests.cli import Cli


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--dataset-name random", "give --backend openai-chat"),
        ("--backend openai-chat --dataset-name trace", "trace has no conversations"),
        ("--backend openai-chat --dataset-name prefix_repetition", "prefix_repetition has no conversations"),
        ("--backend openai-chat --dataset-name custom --multi-turn-num-turns 4", "is of random conversations"),
        ("--backend openai-chat --dataset-name sharegpt --per-turn-input-len 4", "is of random conversations"),
        ("--backend openai-chat --multi-turn-min-turns 4", "at least 4 and at most 3 turns"),
        (
            "--backend openai-chat --multi-turn-num-turns 3 --multi-turn-min-turns 1 --multi-turn-max-turns 5",
            "leave out --multi-turn-num-turns",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(cli: Cli, scripted: Scripted, flags: str, reason: str) -> None:
    ended = cli("bench", "serve", "--base-url", scripted.url, "--model", "steady", "--multi-turn", *flags.split())
    assert (ended.status, ended.out) == (2, "")
    assert reason in ended.err
    assert scripted.bodies == []


def test_flags_of_conversations_need_multi_turn(cli: Cli, scripted: Scripted, tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    without = ["bench", "serve", "--base-url", scripted.url, "--model", "steady", "--backend", "openai-chat"]
    without += ["--dataset-name", "custom", "--dataset-path", str(talks), "--num-prompts", "1"]
    ended = cli(*without, "--multi-turn-delay-ms", "5")
    assert ended.status == 2
    assert "--multi-turn-delay-ms is of conversations: give --multi-turn" in ended.err
    ended = cli(*without)
    assert ended.status == 2
    assert "which needs --multi-turn" in ended.err


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--conversation-num", "--num-prompts, with --multi-turn"),
        ("--session-turns-mean", "--multi-turn-num-turns, with --multi-turn"),
        ("--conversation-turn-delay-mean", "--multi-turn-delay-ms, with --multi-turn"),
        ("--max-active-conversations", "--multi-turn-concurrency, with --multi-turn"),
        ("--gsp-num-turns", "--multi-turn-num-turns, with --multi-turn"),
    ],
)
def test_names_of_other_clients_are_explained(cli: Cli, flag: str, ours: str) -> None:
    ended = cli("bench", "serve", flag, "3")
    assert ended.status == 2
    told = " ".join((ended.out + ended.err).replace("│", " ").split())
    assert f"{flag} is {ours} here." in told
