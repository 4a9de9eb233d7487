"""Rows of training, calibration and evaluation data: read, checked against their template, written for Olive.

Olive reads what is written here: a folder with one JSONL file that holds just the columns a template needs.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.build.azure import log_in_failed
from loraplex.build.document import Path_, Problems
from loraplex.build.errors import first_line
from loraplex.build.recipe import Dataset, Source, resolve

Row = dict[str, Any]
_MENTIONED = 5
"""Bad rows named one by one; the others are counted."""


@dataclass(frozen=True)
class Rows:
    """Rows that fit their template. `columns` are those the template needs."""

    rows: Sequence[Row]
    columns: tuple[str, ...]
    text_template: str | None

    def texts(self, tokenizer: Any = None) -> list[str]:
        """The rows in their template; chats in that of the transformers `tokenizer`."""
        if self.columns == ("messages",):
            return [str(tokenizer.apply_chat_template(row["messages"], tokenize=False)) for row in self.rows]
        if self.text_template is None:
            return [str(row[self.columns[0]]) for row in self.rows]
        return [self.text_template.format(**row) for row in self.rows]

    def write(self, folder: Path) -> None:
        """Write train.jsonl into a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("".join(self._lines()), encoding="utf-8")

    def digest(self) -> str:
        """SHA-256 of what `write` writes."""
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line.encode())
        return digest.hexdigest()

    def _lines(self) -> Iterable[str]:
        for row in self.rows:
            yield json.dumps({column: row[column] for column in self.columns}, ensure_ascii=False) + "\n"


def load_rows(
    source: Source,
    folder: Path,
    path: Path_,
    problems: Problems,
    *,
    text_template: str | None = None,
    messages: bool = False,
) -> Rows | None:
    """Read the rows of a source named in a recipe in `folder`, at `path` of it, and check every one.

    With `messages` rows hold a chat, with a `text_template` its columns, else a `text`. None after a problem.
    """
    columns: tuple[str, ...] | None
    if messages:
        columns = ("messages",)
    elif text_template is None:
        columns = ("text",)
    else:
        columns = template_columns(text_template, (*path[:-1], "text_template"), problems)
    rows = (
        _read_dataset(source, path, problems) if isinstance(source, Dataset) else _read(source, folder, path, problems)
    )
    if rows is None or columns is None:
        return None
    name = source.dataset if isinstance(source, Dataset) else _file(source, folder)
    before = len(problems.found)
    _check(rows, columns, name, path, problems, messages=messages)
    return Rows([row for _, row in rows], columns, text_template) if len(problems.found) == before else None


def template_columns(template: str, path: Path_, problems: Problems) -> tuple[str, ...] | None:
    """Columns of a template in Python's format syntax, as Olive has it; None after a problem."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        problems.add(path, f"is not a template: {error}; write {{{{ and }}}} for braces that are text")
        return None
    fields = [str(name) for _, name, _, _ in parts]
    if any(form or conversion for _, _, form, conversion in parts):
        problems.add(path, "formats a column; write {column} alone, and {{ and }} for braces that are text")
        return None
    if bad := [name for name in fields if not name.isidentifier()]:
        problems.add(path, f"{{{bad[0]}}} is not the name of a column; write {{{{ and }}}} for braces that are text")
        return None
    if not fields:
        problems.add(path, "names no {column}, so every row would be the same text")
        return None
    return tuple(dict.fromkeys(fields))


def _file(source: str, folder: Path) -> Path | str:
    return source if "://" in source else resolve(source, folder)


def _read(source: str, folder: Path, path: Path_, problems: Problems) -> list[tuple[int, Row]] | None:
    """Rows with their lines. JSONL is read line by line, so that every line that is not JSON is told."""
    import fsspec

    file = _file(source, folder)
    try:
        with fsspec.open(str(file), "rt", encoding="utf-8-sig") as stream:
            text = stream.read()
    except FileNotFoundError:
        problems.add(path, f"there is no file {file}")
        return None
    except UnicodeDecodeError:
        problems.add(path, f"{file} is not UTF-8 text")
        return None
    except Exception as error:
        # Besides OSError and ValueError, whatever the package for a URL's protocol raises.
        problems.add(path, f"{source} cannot be read: {_reason(source, error)}")
        return None
    if not text.strip():
        problems.add(path, f"{file} is empty")
        return None
    if text.lstrip().startswith("["):
        return _parse_array(text, file, problems)
    return _parse_lines(text, file, problems)


def _reason(source: str, error: Exception) -> str:
    if source.startswith("azureml:"):
        lacking = ("ModuleNotFoundError", "Protocol not known")
        if isinstance(error, ImportError) or any(each in str(error) for each in lacking):
            return f"{first_line(error)}; pip install azureml-fsspec six"
        if "AuthenticationError" in str(error):
            return log_in_failed(str(error))
    return first_line(error)


def _parse_array(text: str, file: Path | str, problems: Problems) -> list[tuple[int, Row]] | None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add_line(file, error.lineno, f"is not JSON: {error.msg}")
        return None
    if not rows:
        problems.add_line(file, 0, "holds no rows")
        return None
    if bad := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        problems.add_line(file, 0, f"row {bad[0]} is not a JSON object")
        return None
    return [(0, row) for row in rows]


def _parse_lines(text: str, file: Path | str, problems: Problems) -> list[tuple[int, Row]] | None:
    rows: list[tuple[int, Row]] = []
    bad: list[tuple[int, str]] = []
    # Not splitlines, which also splits at characters that JSON allows in a string, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append((number, f"is not JSON: {error.msg}"))
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            bad.append((number, "is not a JSON object"))
    _report(bad, file, problems)
    return None if bad else rows


def _read_dataset(source: Dataset, path: Path_, problems: Problems) -> list[tuple[int, Row]] | None:
    from datasets import load_dataset

    try:
        dataset = load_dataset(source.dataset, source.subset, split=source.split)
    except Exception as error:
        # Whatever a dataset's files or the hub make the library raise.
        problems.add(path, f"the dataset {source.dataset} cannot be loaded: {first_line(error)}")
        return None
    if not len(dataset):
        problems.add(path, f"the dataset {source.dataset} has no rows")
        return None
    return [(0, dict(row)) for row in dataset]


def _check(
    rows: list[tuple[int, Row]],
    columns: tuple[str, ...],
    file: Path | str,
    path: Path_,
    problems: Problems,
    *,
    messages: bool,
) -> None:
    everywhere = {column for _, row in rows for column in row}
    if missing := [column for column in columns if column not in everywhere]:
        there = ", ".join(sorted(everywhere)) or "none"
        where = path if columns in (("text",), ("messages",)) else (*path[:-1], "text_template")
        problems.add(where, f"no row of {file} has a column {missing[0]}; there are {there}")
        return
    bad: list[tuple[int, str]] = []
    for number, (line, row) in enumerate(rows, 1):
        name = "" if line else f"row {number} "
        if absent := [column for column in columns if row.get(column) is None]:
            bad.append((line, f"{name}has no {absent[0]}"))
        elif messages and not _is_chat(row["messages"]):
            bad.append((line, f"{name}has messages that are not a list of role and content"))
        elif not messages and (odd := [c for c in columns if not isinstance(row[c], str | int | float)]):
            bad.append((line, f"{name}has a {odd[0]} that is neither text nor a number"))
    _report(bad, file, problems)


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)
    )


def _report(bad: list[tuple[int, str]], file: Path | str, problems: Problems) -> None:
    for line, message in bad[:_MENTIONED]:
        problems.add_line(file, line, message)
    if len(bad) > _MENTIONED:
        problems.add_line(file, bad[_MENTIONED][0], f"and {len(bad) - _MENTIONED} more rows like these")
