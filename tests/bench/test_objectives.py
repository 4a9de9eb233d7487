"""`--goodput` with objectives of single adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.mix import named
from loraplex.bench.load.objectives import check_asked, limits
from loraplex.bench.results.result_file import read
from tests.bench.conftest import custom, saving
from tests.bench.scripted_server import Scripted
from tests.cli import Cli

NEVER, ALWAYS = "0", "1e9"


def test_names_are_split_from_the_right() -> None:
    given = ("ttft:200", "travel:ttft:100.5", "team:v2:e2el:500", "ttft:tpot:20")
    assert limits(given) == {"ttft": 200, "travel:ttft": 100.5, "team:v2:e2el": 500, "ttft:tpot": 20}


def test_of_many_models_an_error_names_some() -> None:
    models = [f"adapter-{number}" for number in range(1000)]
    check_asked(["ttft", "adapter-999:ttft"], models)
    with pytest.raises(OptionsInvalid, match=r"no request asks tone, but adapter-0, .*, adapter-9 and 990 more: name"):
        check_asked(["tone:ttft"], models)


def test_a_split_may_name_one_that_chance_leaves_out(cli: Cli, scripted: Scripted, questions: Path) -> None:
    assert named("split:steady=0.9,other=0.1", ()) == ["steady", "other"]
    flags = ("--adapter-mix", "split:steady=0.9,other=0.1", "--goodput", f"other:ttft:{ALWAYS}")
    ended = cli(*custom(scripted, questions, prompts=1), *flags)
    assert ended.status == 0, ended.err
    assert {body["model"] for body in scripted.bodies} == {"steady"}


def test_each_adapter_is_held_to_its_own(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    ended = cli(
        *custom(scripted, questions),
        *("--adapters", "steady", "other", "team:v2", "refuses", "--adapter-mix", "round-robin"),
        *("--goodput", f"ttft:{NEVER}", f"steady:ttft:{ALWAYS}", f"team:v2:ttft:{ALWAYS}", f"refuses:ttft:{ALWAYS}"),
        *(f"team:v2:e2el:{NEVER}", *saving(tmp_path)),
    )
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "run.json")
    # The last has no answer, so none is in time.
    good = {"steady": 3, "other": 0, "team:v2": 0, "refuses": 0}
    assert {name: found.request_goodput for name, found in run.adapters.items()} == {
        name: pytest.approx(count / run.duration) for name, count in good.items()
    }
    assert run.totals.request_goodput == pytest.approx(3 / run.duration)
    rows = {line.split()[0]: line.split()[-1] for line in ended.out.splitlines() if line.startswith(tuple(good))}
    assert rows == {"steady": "100%", "other": "0%", "team:v2": "0%", "refuses": "0%"}
    assert run.configuration.goodput == {
        "ttft": 0,
        "steady:ttft": 1e9,
        "team:v2:ttft": 1e9,
        "refuses:ttft": 1e9,
        "team:v2:e2el": 0,
    }


def test_a_sweep_has_them_too(cli: Cli, scripted: Scripted, questions: Path, tmp_path: Path) -> None:
    command = ["sweep" if each == "serve" else each for each in custom(scripted, questions, prompts=16)]
    flags = ("--adapters", "steady", "other", "--adapter-mix", "split:steady=0.75,other=0.25", "--values", "1", "2")
    ended = cli(*command, *flags, "--goodput", f"other:e2el:{NEVER}", "--min-gain", "0", "--result-dir", tmp_path)
    assert ended.status == 0, ended.err
    (run,) = read(tmp_path / "openai-concurrency1.json")
    assert run.totals.request_goodput == pytest.approx(0.75 * run.totals.request_throughput)
