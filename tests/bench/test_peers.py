"""Other servers under the same requests: each is started for real, on a model of one layer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest

from loraplex.bench.errors import ServerFailed
from loraplex.bench.lanes.wave import Ask, over_http, prompts
from loraplex.bench.peers.comparison import Case, Comparison
from loraplex.bench.peers.cpu import Session, cases
from loraplex.bench.peers.cpu import main as compare_all
from loraplex.bench.peers.llamacpp import convert, llama_server
from loraplex.bench.peers.model import ADAPTERS
from loraplex.bench.peers.model import main as make_model
from loraplex.bench.peers.olive_loop import olive_loop
from loraplex.bench.peers.ours import loraplex
from loraplex.bench.peers.peer import Peer, free_port, started
from loraplex.bench.peers.transformers_peft import transformers_peft
from loraplex.bench.results.result_file import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOOLS = {name: os.environ.get(name, "") for name in ("LLAMA_CPP", "LLAMA_QUANTIZE", "LLAMA_SERVER")}
"""Where llama.cpp is, for those who have it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder, layers=1)
    return folder


@pytest.fixture(scope="module")
def ours(work: Path) -> Iterator[Peer]:
    with loraplex(work, threads=1, engine="generator") as peer:
        yield peer


def texts(peer: Peer, adapters: Sequence[int | None]) -> list[str]:
    """Greedy answers to prompts that depend on the place in the list alone, asked for together."""
    ids = prompts("test", len(adapters), 12, 300, 8192)
    asks = [
        Ask(peer.model(adapter), None, prompt, 6, peer.fields(adapter))
        for adapter, prompt in zip(adapters, ids, strict=True)
    ]
    return [request.text for request in over_http(peer.url, asks).requests]


def test_olives_loop_answers_as_the_generator_lane_does(work: Path, ours: Peer) -> None:
    with olive_loop(work, threads=1) as peer:
        assert texts(peer, [None, 0, 5]) == texts(ours, [None, 0, 5])
        assert "one request at a time" in peer.describe()
        assert "onnxruntime-genai" in peer.versions


def test_a_starter_that_is_ended_takes_its_server_along(work: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loraplex.bench.peers.ours", str(work), "--threads", "1", "--engine", "generator"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        url = next(found[1] for line in starter.stdout if (found := re.match(r"Ready on (\S+);", line)))
        assert httpx.get(f"{url}/health", timeout=60).is_success
        starter.terminate()
        assert starter.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", timeout=60)
    command[3] = str(tmp_path)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"loraplex: {tmp_path}/bundle is not a bundle: it has no bundle.json\n",
    )


def test_a_row_of_transformers_batch_has_its_own_adapter(work: Path) -> None:
    with transformers_peft(work, threads=1) as peer:
        together = texts(peer, [None, 3, 3, 7])
        alone = [texts(peer, (*[None] * place, adapter))[-1] for place, adapter in enumerate([None, 3, 3, 7])]
        base = texts(peer, [None] * 4)
    assert together == alone
    assert together[0] == base[0]
    assert together[1:] != base[1:]
    assert {"transformers", "peft", "torch"} <= set(peer.versions)


def test_servers_are_measured_side_by_side(work: Path, ours: Peer, tmp_path: Path) -> None:
    some = [Case("base", 1, 0, 8, 4), Case("2 adapters", 3, 2, 8, 4)]
    with olive_loop(work, threads=1) as loop:
        comparison = Comparison([ours, loop], some, {loop.name: 8})
        for _ in range(2):
            comparison.round()
        comparison.starve(0.5, 8, 4)
        comparison.save(tmp_path)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in comparison.markdown().splitlines()]
    assert [line[:2] for line in lines[2:5]] == [
        ["base, 1 stream, 8+4", "loraplex"],
        ["base, 1 stream, 8+4", "Olive's loop"],
        ["2 adapters, 3 streams, 8+4", "loraplex"],
    ]
    assert {line[0] for line in lines if len(line) == 4} >= {"loraplex", "Olive's loop"}
    assert "--engine generator" in comparison.provenance()
    runs = read(tmp_path / "base-1-stream-8+4.json")
    assert [run.configuration.label for run in runs] == ["loraplex", "loraplex", "Olive's loop", "Olive's loop"]
    assert [run.totals.total_output_tokens for run in runs] == [4, 4, 4, 4]


def test_the_whole_comparison_has_every_server_and_keeps_its_runs(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = partial(compare_all, streams=(1, 8), prompts=(8,), answer=4, load_seconds=1)
    shape(work, threads=1, minutes=5, rounds=1, results=tmp_path)
    out, err = capsys.readouterr()
    names = ["base, 1 stream, 8+4", "one adapter, 1 stream, 8+4", "8 adapters, 8 streams, 8+4"]
    for server in ("loraplex", "transformers + PEFT", "Olive's loop"):
        for case in names:
            assert f"{case}, {server}: " in err
            assert re.search(rf"^\| {re.escape(case)} +\| {re.escape(server)} ", out, re.MULTILINE)
    assert (tmp_path / "table.md").read_text().strip() == out.strip()
    assert {"base-1-stream-8+4.json", "8-adapters-8-streams-8+4.json"} <= {path.name for path in tmp_path.iterdir()}


def test_cases_for_which_there_is_no_time_are_named(ours: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = Comparison([ours], [Case("base", 1, 0, 8, 4), Case("base", 2, 0, 500, 400)])
    began = time.monotonic()
    comparison.measure(comparison.cases[0], ours)
    comparison.next_round(comparison.cases[0])
    # Enough for the small case; the large one has 150 times its tokens.
    seconds = 20 * (comparison.seconds(comparison.cases[0], ours) or 0) + 1.1
    Session(comparison, time.monotonic(), seconds, None).run(0, 3)
    assert time.monotonic() - began < 60
    assert "- base, 2 streams, 500+400, loraplex: left out, as there was no time for it" in comparison.markdown()
    assert "base, 1 stream, 8+4, loraplex: " in capsys.readouterr().err


def test_a_server_that_is_gone_does_not_lose_what_others_did(ours: Peer, tmp_path: Path) -> None:
    gone = msgspec.structs.replace(ours, name="gone", url=f"http://127.0.0.1:{free_port()}")
    comparison = Comparison([ours, gone], [Case("base", 1, 0, 8, 4)])
    Session(comparison, time.monotonic(), 60, tmp_path).run(0, 3)
    assert "- base, 1 stream, 8+4, gone: failed, " in (tmp_path / "table.md").read_text()
    assert [run.configuration.label for run in read(tmp_path / "base-1-stream-8+4.json")] == ["loraplex"]


def test_cases_are_every_spread_that_fits() -> None:
    names = [case.name for case in cases((1, 8, 64), (64, 1024), 32, 8192)]
    assert names == [
        *("base, 1 stream, 64+32", "one adapter, 1 stream, 64+32"),
        *("base, 8 streams, 64+32", "one adapter, 8 streams, 64+32", "8 adapters, 8 streams, 64+32"),
        *("base, 64 streams, 64+32", "one adapter, 64 streams, 64+32", "8 adapters, 64 streams, 64+32"),
        *("base, 1 stream, 1024+32", "one adapter, 1 stream, 1024+32"),
        *("base, 8 streams, 1024+32", "one adapter, 8 streams, 1024+32", "8 adapters, 8 streams, 1024+32"),
    ]


@pytest.mark.skipif(not all(TOOLS.values()), reason=f"{', '.join(TOOLS)} do not say where llama.cpp is")
def test_llama_server_applies_one_adapter_at_a_time(work: Path) -> None:
    convert(work, Path(TOOLS["LLAMA_CPP"]), Path(TOOLS["LLAMA_QUANTIZE"]))
    with llama_server(work, Path(TOOLS["LLAMA_SERVER"]), threads=1) as peer:
        answers = texts(peer, [None, *range(3)])
        assert answers == [texts(peer, (*[None] * place, each))[-1] for place, each in enumerate([None, 0, 1, 2])]
        assert [scale["scale"] for scale in peer.fields(2)["lora"]] == [0.0, 0.0, 1.0] + [0.0] * (ADAPTERS - 3)


@pytest.mark.parametrize("start", [transformers_peft, olive_loop])
def test_an_unknown_adapter_is_refused(work: Path, start: Callable[..., AbstractContextManager[Peer]]) -> None:
    with start(work, threads=1) as peer, pytest.raises(ServerFailed, match="http_404: no model 'nobody'"):
        over_http(peer.url, [Ask("nobody", None, [300], 2)])


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no model here >&2; exit 3"]
    with (
        pytest.raises(ServerFailed, match=r"sh ended with status 3:\nno model here"),
        started(command, f"http://127.0.0.1:{free_port()}", tmp_path / "log"),
    ):
        pytest.fail("it has started")
