"""`loraplex bench compare`: ratios to the first, rounds, and what makes a comparison doubtful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loraplex.bench.results.result import Run
from loraplex.bench.results.result_file import write
from tests.bench.runs import make_run
from tests.cli import Cli


def save(folder: Path, **runs: Run) -> list[Path]:
    paths = []
    for name, run in runs.items():
        paths.append(folder / f"{name}.json")
        write(run, paths[-1])
    return paths


def figures(path: Path, point: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_bytes())["points"][point]["figures"]
    return found


def test_ratios_are_to_the_first_and_know_their_direction(cli: Cli, tmp_path: Path) -> None:
    paths = save(tmp_path, slow=make_run("slow"), fast=make_run("fast", speed=2))
    ended = cli("bench", "compare", *paths, "--json", tmp_path / "out.json", "--html", tmp_path / "out.html")
    assert (ended.status, ended.err) == (0, "")
    found = figures(tmp_path / "out.json")
    throughput, ttft = found["output_throughput"], found["median_ttft_ms"]
    assert throughput["fast"]["ratio"] == pytest.approx(2)
    assert throughput["fast"]["gain"] == pytest.approx(2)
    assert ttft["slow"]["median"] == pytest.approx(100)
    assert ttft["fast"]["median"] == pytest.approx(50)
    assert ttft["fast"]["ratio"] == pytest.approx(0.5)
    assert ttft["fast"]["gain"] == pytest.approx(2)
    assert throughput["slow"]["ratio"] is None
    rows = [line.split("│") for line in ended.out.splitlines() if "TTFT median" in line]
    assert [cell.strip() for cell in rows[0][1:5]] == ["TTFT median, ms", "100", "50", "0.50 +"]
    page = (tmp_path / "out.html").read_text()
    assert '<td class="number good">0.50 +</td>' in page
    assert "<h1>slow / fast</h1>" in page


def test_files_with_one_label_are_rounds(cli: Cli, tmp_path: Path) -> None:
    paths = save(
        tmp_path,
        a1=make_run("a", speed=1),
        b1=make_run("b", speed=2),
        a2=make_run("a", speed=1.5),
        b2=make_run("b", speed=3),
        a3=make_run("a", speed=1.2),
        b3=make_run("b", speed=3),
    )
    assert cli("bench", "compare", *paths, "--json", tmp_path / "out.json").status == 0
    ttft = figures(tmp_path / "out.json")["median_ttft_ms"]
    assert ttft["a"]["median"] == pytest.approx(100 / 1.2)
    assert ttft["b"]["values"] == pytest.approx([50, 100 / 3, 100 / 3])
    # The median of the rounds' ratios: 1/2, 1.5/3, 1.2/3.
    assert ttft["b"]["ratio"] == pytest.approx(0.5)


def test_sides_meet_at_each_load(cli: Cli, tmp_path: Path) -> None:
    for label, speed in (("a", 1.0), ("b", 2.0)):
        for streams in (1, 4, *([8] if label == "a" else [])):
            run = make_run(label, speed=speed, max_concurrency=streams)
            write(run, tmp_path / f"{label}.json", append=True)
    ended = cli("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "out.json")
    assert [each["name"] for each in json.loads((tmp_path / "out.json").read_bytes())["points"]] == [
        "1 at once",
        "4 at once",
    ]
    assert "only one of a and b was measured at: 8 at once" in ended.err


def test_the_same_labels_of_two_files_are_compared_by_file(cli: Cli, tmp_path: Path) -> None:
    for name, speed in (("before", 1.0), ("after", 2.0)):
        for label in ("batched, base", "generator, base"):
            write(make_run(label, speed=speed, max_concurrency=2), tmp_path / f"{name}.json", append=True)
    files = (tmp_path / "before.json", tmp_path / "after.json")
    assert cli("bench", "compare", *files, "--by", "file", "--json", tmp_path / "out.json").status == 0
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert found["sides"] == ["before", "after"]
    assert [each["name"] for each in found["points"]] == ["batched, base, 2 at once", "generator, base, 2 at once"]


def test_steady_states_are_compared(cli: Cli, tmp_path: Path) -> None:
    # One request after the other: the whole run, of 10 tokens in 280 ms.
    runs = {label: make_run(label, speed=speed, requests=16) for label, speed in (("a", 1.0), ("b", 2.0))}
    ended = cli("bench", "compare", *save(tmp_path, **runs), "--json", tmp_path / "out.json")
    found = figures(tmp_path / "out.json")["steady_output_throughput"]
    assert found["a"]["median"] == pytest.approx(10 / 0.28)
    assert found["b"]["gain"] == pytest.approx(2)
    assert "tokens/s in steady state" in ended.out
    short = cli("bench", "compare", *save(tmp_path, a=make_run("a", requests=2), b=make_run("b", requests=2)))
    assert "steady state" not in short.out


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"prompt": 64}, "prompt tokens a request: a has 16, b has 64"),
        ({"requests": 8}, "requests: a has 4, b has 8"),
        ({"seed": 3}, "seed: a has 0, b has 3"),
        ({"dataset": "sharegpt"}, "dataset: a has random, b has sharegpt"),
        ({"model_id": "other"}, "model: a has plex, b has other"),
        ({"backend": "openai-chat"}, "endpoint: a has openai, b has openai-chat"),
        ({"goodput": {"ttft": 300.0}}, "objectives: a has travel:ttft:200, ttft:300, b has ttft:300"),
        ({"adapters": ["tone"]}, "adapters: a has tone, travel, b has tone"),
        ({"adapters": ["travel", "tone"], "adapter_mix": "zipf:1.2"}, "adapter mix: a has round-robin, b has zipf:1.2"),
        ({"adapters": [], "adapter_mix": ""}, "adapters: a has tone, travel, b has none"),
        ({"request_rate": 4.0}, "the loads differ: a: all at once; b: 4 requests/s"),
        ({"max_concurrency": 8}, "the loads differ: a: all at once; b: 8 at once"),
    ],
)
def test_other_work_is_warned_of(cli: Cli, tmp_path: Path, changes: dict[str, Any], warning: str) -> None:
    mixed: dict[str, Any] = {"adapters": ["travel", "tone"], "adapter_mix": "round-robin"}
    mixed["goodput"] = {"ttft": 300.0, "travel:ttft": 200.0}
    ended = cli("bench", "compare", *save(tmp_path, a=make_run("a", **mixed), b=make_run("b", **(mixed | changes))))
    assert ended.status == 0
    assert ended.err.splitlines() == [f"warning: {warning}"]


def test_a_difference_at_several_loads_is_one_line(cli: Cli, tmp_path: Path) -> None:
    for label, seed in (("a", 0), ("b", 5)):
        for streams in (1, 4):
            run = make_run(label, max_concurrency=streams, seed=seed, prompt=16 * streams if seed else 16)
            write(run, tmp_path / f"{label}.json", append=True)
    ended = cli("bench", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert ended.err.splitlines() == [
        "warning: seed: a has 0, b has 5",
        "warning: prompt tokens a request: a has 16, b has 64 (4 at once)",
    ]


def test_what_a_file_of_vllm_does_not_tell_is_no_difference(cli: Cli, tmp_path: Path) -> None:
    theirs = make_run("b", dataset="", seed=0)
    ours = make_run("a", adapters=["travel", "tone"], adapter_mix="random", seed=7, goodput={"ttft": 300.0})
    assert cli("bench", "compare", *save(tmp_path, a=ours, b=theirs)).err == ""


def test_a_loss_is_warned_of_and_fails_nothing(cli: Cli, tmp_path: Path) -> None:
    paths = save(tmp_path, a=make_run("a"), b=make_run("b", speed=0.5))
    ended = cli("bench", "compare", *paths, "--warn-below", "0.85")
    assert ended.status == 0
    assert "warning: b, all at once: output tokens/s is 0.50 times that of a" in ended.err
    assert "warning: b, all at once: TTFT median is 2.00 times that of a" in ended.err
    assert "warning" not in cli("bench", "compare", *paths, "--warn-below", "0.4").err


def test_many_sides_take_several_tables(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    paths = save(tmp_path, **{name: make_run(name) for name in "abcdef"})
    ended = cli("bench", "compare", *paths)
    assert ended.out.count("output tokens/s") == 5
    assert "…" not in ended.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{}", "it has no 'duration'"),
        ("[]", "no result of `bench serve`"),
        ("no json", "no result of `bench serve`"),
        ('{\n"points": []\n}', "is the summary of a sweep"),
    ],
)
def test_what_is_no_result_is_named(cli: Cli, tmp_path: Path, content: str | None, message: str) -> None:
    bad, (good,) = tmp_path / "bad.json", save(tmp_path, good=make_run())
    if content is not None:
        bad.write_text(content)
    ended = cli("bench", "compare", good, bad)
    assert ended.status == 2
    assert str(bad) in ended.err
    assert message in ended.err


def test_a_file_that_cannot_be_written_is_named(cli: Cli, tmp_path: Path) -> None:
    paths = save(tmp_path, a=make_run("a"), b=make_run("b"))
    for flag in ("--json", "--html"):
        ended = cli("bench", "compare", *paths, flag, paths[0] / "out")
        assert ended.status == 2
        assert f"{paths[0] / 'out'} cannot be written" in ended.err


def test_files_with_one_name_in_two_folders_are_two_sides(cli: Cli, tmp_path: Path) -> None:
    (one,), (two,) = save(tmp_path / "before", run=make_run("same")), save(tmp_path / "after", run=make_run("same"))
    ended = cli("bench", "compare", one, two, "--by", "file", "--json", tmp_path / "out.json")
    assert ended.status == 0, ended.err
    assert json.loads((tmp_path / "out.json").read_text())["sides"] == [str(one), str(two)]


def test_a_run_without_any_success_has_no_latencies_to_compare(cli: Cli, tmp_path: Path) -> None:
    run = make_run("b")
    totals = msgspec.structs.replace(run.totals, completed=0, failed=4)
    paths = save(tmp_path, a=make_run("a"), b=msgspec.structs.replace(run, totals=totals))
    assert cli("bench", "compare", *paths, "--json", tmp_path / "out.json").status == 0
    found = figures(tmp_path / "out.json")
    assert set(found["median_ttft_ms"]) == {"a"}
    assert set(found["failed"]) == {"a", "b"}


def test_failures_on_one_side_are_warned_of(cli: Cli, tmp_path: Path) -> None:
    run = make_run("b")
    failing = msgspec.structs.replace(run, totals=msgspec.structs.replace(run.totals, failed=3))
    ended = cli("bench", "compare", *save(tmp_path, a=make_run("a"), b=failing))
    assert "failed requests: a has 0, b has 3" in ended.err


def test_one_side_alone_is_nothing_to_compare(cli: Cli, tmp_path: Path) -> None:
    ended = cli("bench", "compare", *save(tmp_path, one=make_run("same"), two=make_run("same")))
    assert ended.status == 2
    assert "give runs another --label, or compare by file with --by file" in ended.err
    ended = cli("bench", "compare", *save(tmp_path, one=make_run("same")), "--by", "file")
    assert ended.status == 2
    assert "every run is of 'one', so there is nothing to compare it with: name another file" in ended.err


def test_names_that_are_longer_than_their_column_are_shown_whole(cli: Cli, tmp_path: Path) -> None:
    names = [f"openai-infqps-concurrency8-{name}" for name in ("before", "after")]
    files = []
    for name in names:
        files.append(tmp_path / f"{name}.json")
        write(make_run(), files[-1])
    ended = cli("bench", "compare", *files)
    assert ended.status == 0, ended.err
    headers = ended.out.split("output tokens/s")[0]
    columns = [line.split("┃")[2:4] for line in headers.splitlines() if line.startswith("┃")]
    assert ["".join(column[side].strip() for column in columns) for side in (0, 1)] == names
