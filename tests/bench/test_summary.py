"""What is said of a run besides its figures: warnings where they are doubtful, notes where they are not."""

from __future__ import annotations

import subprocess
import sys
from os import close, pipe
from pathlib import Path

import msgspec
import pytest

from loraplex.bench.results.remarks import notes, warnings
from loraplex.bench.results.report import write_report
from loraplex.bench.results.result import Run, TokenCheck
from loraplex.bench.results.summary import text
from tests.bench.conftest import custom
from tests.bench.runs import make_run
from tests.bench.scripted_server import Scripted


def with_tokens(run: Run, chunks: int) -> Run:
    """40 tokens in so many chunks."""
    return msgspec.structs.replace(run, tokens=TokenCheck(usage_tokens=40, chunks=chunks, fewer_chunks=4))


def test_a_few_tokens_without_a_chunk_are_a_note(tmp_path: Path) -> None:
    run = with_tokens(make_run("mine"), chunks=36)
    assert warnings(run) == []
    (note,) = notes(run)
    assert note.startswith("4 of 4 answers came in fewer chunks with text than they have tokens (36 chunks, 40 tokens)")
    assert text(run).endswith(f"note: {note}")
    for runs in ([run], [run, with_tokens(make_run("other"), chunks=36)]):
        write_report(runs, html=tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert page.count(note) == len(runs)
        assert 'class="warning"' not in page


def test_many_tokens_a_chunk_are_a_warning(tmp_path: Path) -> None:
    run = with_tokens(make_run("mine"), chunks=10)
    assert notes(run) == []
    (warning,) = warnings(run)
    assert "40 tokens in 10 chunks" in warning
    write_report([run], html=tmp_path / "page.html")
    assert f'<p class="warning">{warning}</p>' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("loads", [2, 20])
def test_warnings_of_several_runs_are_on_their_page(tmp_path: Path, loads: int) -> None:
    runs = [make_run("mine", max_concurrency=1 + load, failed=1) for load in range(loads)]
    write_report(runs, html=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("1 of 4 requests failed") == loads


def test_adapters_whose_answers_have_other_lengths_are_told() -> None:
    run = make_run("mine", models=("travel", "tone"))
    assert notes(run) == []
    long = msgspec.structs.replace(run.adapters["travel"], total_output_tokens=40)
    run = msgspec.structs.replace(run, adapters=run.adapters | {"travel": long})
    (note,) = notes(run)
    assert note.startswith("answers of travel have 20.0 tokens on average, those of tone 10.0")


def test_each_adapter_has_its_share_in_time() -> None:
    run = make_run("mine", models=("travel", "tone"), failed=1)
    assert "in time" not in text(run)
    goodput = {name: each.completed / run.duration for name, each in run.adapters.items()}
    run = msgspec.structs.replace(
        run,
        totals=msgspec.structs.replace(run.totals, request_goodput=sum(goodput.values())),
        adapters={
            name: msgspec.structs.replace(each, request_goodput=goodput[name]) for name, each in run.adapters.items()
        },
    )
    rows = {line.split()[0]: line.split()[-1] for line in text(run).splitlines() if line.startswith(("travel", "tone"))}
    assert rows == {"travel": "50%", "tone": "100%"}


def test_a_run_is_saved_though_nobody_reads_what_is_printed(
    scripted: Scripted, questions: Path, tmp_path: Path
) -> None:
    reader, writer = pipe()
    close(reader)
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "loraplex.server", *map(str, custom(scripted, questions))),
                *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "run.json"),
            ],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        close(writer)
    assert (tmp_path / "run.json").exists()
