"""Rows of recipes: what is read from where, and what their templates make of them."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from loraplex.build.data import Rows, load_rows
from loraplex.build.document import Problems
from loraplex.build.recipe import Dataset, Source

ROWS = [{"city": "Rome", "sights": 3}, {"city": "Lima", "sights": 2.5}]
PATH = ("adapters", "travel", "data")


def load(source: Source, folder: Path, template: str | None = "See {city}: {sights}{{}}") -> Rows:
    problems = Problems(Path("recipe.yaml"))
    rows = load_rows(source, folder, PATH, problems, text_template=template)
    assert problems.messages() == []
    assert rows is not None
    return rows


@pytest.mark.parametrize("form", ["lines", "array"])
def test_json_and_jsonl(form: str, tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "rows.json").write_text(lines if form == "lines" else json.dumps(ROWS, indent=2))
    assert load("rows.json", tmp_path).texts() == ["See Rome: 3{}", "See Lima: 2.5{}"]


def test_a_byte_order_mark_and_a_line_separator_in_a_text(tmp_path: Path) -> None:
    lines = '\ufeff{"city": "a\u2028b", "days": 1}\r\n{"city": "c", "days": 2}\r\n'
    (tmp_path / "rows.jsonl").write_bytes(lines.encode())
    assert load("rows.jsonl", tmp_path, "{city}").texts() == ["a\u2028b", "c"]


@pytest.mark.parametrize("template", ["{city:>10d}", "{city!r}", "{city!z}"])
def test_a_template_that_formats(template: str, tmp_path: Path) -> None:
    problems = Problems(Path("recipe.yaml"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    assert load_rows("rows.jsonl", tmp_path, PATH, problems, text_template=template) is None
    assert "write {column} alone" in problems.messages()[0]


def test_a_url_that_fsspec_opens(tmp_path: Path) -> None:
    with fsspec.open("memory://rows.jsonl", "wt") as stream:
        stream.write(json.dumps(ROWS[0]))
    assert load("memory://rows.jsonl", tmp_path).texts() == ["See Rome: 3{}"]


def test_a_protocol_that_needs_a_package_names_it(tmp_path: Path) -> None:
    problems = Problems(Path("recipe.yaml"))
    url = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/rows.jsonl"
    assert load_rows(url, tmp_path, PATH, problems, text_template="{city}") is None
    assert "pip install azureml-fsspec" in problems.messages()[0]


def test_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load(Dataset(str(tmp_path / "set")), tmp_path).texts()[0] == "See Rome: 3.0{}"
    problems = Problems(Path("recipe.yaml"))
    assert load_rows(Dataset("no/where"), tmp_path, PATH, problems, text_template="{city}") is None
    assert "the dataset no/where cannot be loaded" in problems.messages()[0]


def test_what_is_written_holds_the_columns_of_the_template_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    rows = load("rows.jsonl", tmp_path, "{city}")
    rows.write(tmp_path / "out")
    assert (tmp_path / "out" / "train.jsonl").read_text() == '{"city": "Rome"}\n'
    assert rows.digest() != load("rows.jsonl", tmp_path, "{sights}").digest()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("no column", "names no {column}"),
        ("{}", "is not the name of a column"),
        ("{city.name}", "is not the name of a column"),
        ("{city", "is not a template"),
        ("{country}", "no row of {folder}/rows.jsonl has a column country; there are city, sights"),
    ],
)
def test_bad_templates(template: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    problems = Problems(Path("recipe.yaml"))
    assert load_rows("rows.jsonl", tmp_path, PATH, problems, text_template=template) is None
    (line,) = problems.messages()
    assert told.replace("{folder}", str(tmp_path)) in line
    assert line.startswith("recipe.yaml: adapters.travel.text_template: ")


def test_bad_rows_are_told_by_line_and_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"city": "Rome"}\n' + '{"city": null}\n' * 3 + '{"city": ["a"]}\n' * 4)
    problems = Problems(Path("recipe.yaml"))
    assert load_rows("rows.jsonl", tmp_path, PATH, problems, text_template="{city}") is None
    lines = problems.messages()
    assert lines[0] == f"{tmp_path}/rows.jsonl:2: has no city"
    assert f"{tmp_path}/rows.jsonl:5: has a city that is neither text nor a number" in lines
    assert f"{tmp_path}/rows.jsonl:7: and 2 more rows like these" in lines


def test_chats(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "w9"}, {"role": "assistant", "content": "w10"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}))
    problems = Problems(Path("recipe.yaml"))
    rows = load_rows("rows.jsonl", tmp_path, PATH, problems, messages=True)
    assert rows is not None
    assert rows.columns == ("messages",)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": "w9"}))
    assert load_rows("rows.jsonl", tmp_path, PATH, problems, messages=True) is None
    assert "has messages that are not a list of role and content" in problems.messages()[0]
