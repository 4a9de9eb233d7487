"""Tokens that arrive together: a real server in front of an engine that says what a test wants it to."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tokenizers import Tokenizer

from tests.server.conftest import DEMO, scripted
from tests.server.process import ServerProcess

TOKENIZER = Tokenizer.from_file(str(DEMO / "base" / "generator" / "tokenizer.json"))
TEXT = " Tokyo is called 東京, a naïve café has 👩‍👩‍👧 in it, and Paris is the capital of France."
IDS: list[int] = TOKENIZER.encode(TEXT, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[1, 3, 40])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Every request gets its own prompt, again and again, so many tokens at once, as fast as they can be written."""
    log = tmp_path_factory.mktemp("log") / "log"
    with scripted(log, f"--at-once {request.param}", "--max-running", "64") as server:
        yield server
    assert "Traceback" not in log.read_text()


def test_no_token_is_lost_or_changes_places(server: ServerProcess) -> None:
    chunks = list(
        server.client.completions.create(
            model="travel",
            prompt=IDS,
            max_tokens=4 * len(IDS),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *body, last = chunks
    texts = [chunk.choices[0].text for chunk in body]
    assert "".join(texts) == TEXT * 4
    assert not any("�" in text for text in texts)
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in body)
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], 4 * len(IDS))


def test_usage_is_that_of_each_chunk(server: ServerProcess) -> None:
    chunks = list(
        server.client.completions.create(
            model="travel",
            prompt=IDS,
            max_tokens=len(IDS),
            stream=True,
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        )
    )
    seen = ""
    for chunk in chunks[:-1]:
        seen += chunk.choices[0].text
        assert chunk.usage is not None
        said = TOKENIZER.decode(IDS[: chunk.usage.completion_tokens]).rstrip("�")
        assert said.strip() == seen.strip()


@pytest.mark.parametrize("stop", ["capital of Fra", "京, a na", "France. Tok", ["never said", "👩‍👧 in"]])
def test_stop_strings_are_found_across_tokens(server: ServerProcess, stop: str | list[str]) -> None:
    first = min(found for each in ([stop] if isinstance(stop, str) else stop) if (found := (TEXT * 2).find(each)) >= 0)
    *body, last = server.client.completions.create(
        model="travel", prompt=IDS, max_tokens=4 * len(IDS), stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in [*body, last]) == (TEXT * 2)[:first]
    assert last.choices[0].finish_reason == "stop"


def test_a_chat_has_its_role_once_and_its_end_last(server: ServerProcess) -> None:
    chunks = list(
        server.client.chat.completions.create(
            model="tone", messages=[{"role": "user", "content": TEXT}], max_tokens=300, stream=True
        )
    )
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert TEXT.strip() in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def test_many_streams_get_each_its_own(server: ServerProcess) -> None:
    client = server.async_client

    async def ask(number: int) -> None:
        own = TOKENIZER.encode(f" Stream {number} says 東京 and {number * number}.", add_special_tokens=False).ids
        stream = await client.completions.create(
            model=("plex", "travel", "tone", "json")[number % 4], prompt=own, max_tokens=8 * len(own), stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
        assert text == f" Stream {number} says 東京 and {number * number}." * 8

    await asyncio.gather(*(ask(number) for number in range(64)))
    await client.close()


def test_several_choices_get_each_all_of_it(server: ServerProcess) -> None:
    texts = [""] * 3
    for chunk in server.client.completions.create(
        model="travel", prompt=IDS, max_tokens=4 * len(IDS), n=3, stream=True, seed=1
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [TEXT * 4] * 3


def test_the_whole_answer_is_what_streams(server: ServerProcess) -> None:
    answer = server.client.completions.create(model="travel", prompt=IDS, max_tokens=2 * len(IDS))
    assert answer.choices[0].text == TEXT * 2
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * len(IDS)


def test_metrics_count_every_token(server: ServerProcess) -> None:
    before = server.metric("loraplex_generation_tokens_total", adapter="json")
    gaps = server.metric("loraplex_inter_token_latency_seconds_count", adapter="json")
    list(server.client.completions.create(model="json", prompt=IDS, max_tokens=500, stream=True))
    assert server.metric("loraplex_generation_tokens_total", adapter="json") == before + 500
    assert server.metric("loraplex_inter_token_latency_seconds_count", adapter="json") > gaps


def test_who_leaves_is_forgotten(tmp_path: Path) -> None:
    with scripted(tmp_path / "log", "--seconds 0.02", "--max-running", "64") as server:
        stream = server.client.completions.create(model="travel", prompt=IDS, max_tokens=1900, stream=True)
        assert isinstance(stream, openai.Stream)
        next(stream)
        server.wait_for("loraplex_requests_running", 1, adapter="travel")
        stream.close()
        server.wait_for("loraplex_requests_running", 0, adapter="travel")
        assert server.metric("loraplex_requests_total", adapter="travel", finish_reason="cancelled") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_measures_both_servers_under_every_load() -> None:
    command = [
        sys.executable,
        "-m",
        "loraplex.bench.scripted.cost",
        "--streams",
        "8",
        "--tokens",
        "40",
        "--rounds",
        "1",
    ]
    result = subprocess.run([*command, "--rates", "400"], capture_output=True, text=True, timeout=550)
    assert result.returncode == 0, result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if re.match(r"\| (as|\d)", line)]
    loads = ["as fast as can be", "400 tokens/s, in steps", "400 tokens/s, evenly"]
    assert [row[:2] for row in rows] == [[load, server] for load in loads for server in ("floor", "loraplex")]
    for row in rows:
        assert float(row[2].replace(",", "")) > 0
        assert float(row[3].replace(",", "")) > 0
