"""YAML that remembers its lines, and its conversion to a struct with every problem found at once.

msgspec stops at the first value that does not fit; here every field is converted on its own.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

Path_ = tuple[str, ...]
"""Keys from the top of a document down to a value; items of a list have their index."""


@dataclass
class Problems:
    """What is wrong with one file, each with the line it stands on. The first problem of a value counts."""

    file: Path
    lines: Mapping[Path_, int] = field(default_factory=dict)
    names: Mapping[Path_, str] = field(default_factory=dict)
    """What people know a value by where that is not its path, such as an option of the command."""
    found: dict[tuple[str, int, str], Path_] = field(default_factory=dict)
    """Path by file, line and message."""
    _unread: set[Path_] = field(default_factory=set)

    def add(self, path: Path_, message: str) -> None:
        """Note a problem of the value at `path`."""
        if any(path[: len(start)] == start for start in self._unread):
            return
        where = path
        while where and where not in self.lines:
            where = where[:-1]
        name = self.names.get(path, ".".join(path))
        self.found[str(self.file), self.lines.get(where, 0), f"{name}: {message}" if name else message] = path

    def add_line(self, file: Path | str, line: int, message: str) -> None:
        """Note a problem on a line, counted from 1, of this or another file; line 0 is the file as a whole."""
        self.found[str(file), line, message] = ()

    def leave_out(self, path: Path_) -> None:
        """From now on ignore what is found inside `path`, of which only a part could be read."""
        self._unread.add(path)

    def paths(self) -> list[Path_]:
        """Those of values with problems."""
        return [path for path in self.found.values() if path]

    def messages(self) -> list[str]:
        """One line each, by file and line."""
        return [f"{file}:{line}: {text}" if line else f"{file}: {text}" for file, line, text in sorted(self.found)]


def read_yaml(file: Path, problems: Problems) -> Any:
    """The document as Python values, with `problems.lines` filled in; None where there is no valid document."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        problems.add_line(file, 0, f"cannot be read: {error.strerror or error}")
        return None
    except UnicodeDecodeError:
        problems.add_line(file, 0, "is not UTF-8 text")
        return None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            problems.add_line(file, 1, "is empty")
            return None
        lines: dict[Path_, int] = {}
        _walk(node, (), lines, problems)
        problems.lines = lines
        return yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.add_line(file, line, f"is not YAML: {error.problem}")
    except yaml.YAMLError as error:
        problems.add_line(file, 1, f"is not YAML: {str(error).splitlines()[0]}")
    return None


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], problems: Problems) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                problems.add_line(problems.file, line, f"{'.'.join(inner)}: stands here a second time")
                continue
            lines[inner] = line
            _walk(value, inner, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, str(index)), lines, problems)


def convert(value: Any, kind: Any, path: Path_, problems: Problems) -> Any:
    """`value` as a `kind`, which may be a struct, a mapping of structs or anything msgspec converts.

    Returns None after a problem; in a struct a field that has a default then keeps it, and in a mapping the entry is
    left out.
    """
    structs = [option for option in _options(kind) if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    if isinstance(value, dict) and len(structs) == 1:
        return _convert_struct(value, structs[0], path, problems)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        inner = typing.get_args(kind)[1]
        found = {str(key): convert(each, inner, (*path, str(key)), problems) for key, each in value.items()}
        return {key: each for key, each in found.items() if each is not None}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        # msgspec calls a mapping an object.
        choices = [str(each) for option in _options(kind) if _is_choice(option) for each in typing.get_args(option)]
        if choices and message.startswith("Invalid enum value"):
            message = f"{value!r} is none of {', '.join(choices)}"
        problems.add((*path, *where.rstrip("`").strip(".").split(".")) if where else path, _plain(message))
        return None


def _convert_struct(value: dict[Any, Any], kind: type[msgspec.Struct], path: Path_, problems: Problems) -> Any:
    fields = {each.name: each for each in msgspec.structs.fields(kind)}
    given: dict[str, Any] = {}
    for key, inner in value.items():
        if key not in fields:
            problems.add((*path, str(key)), f"there is no such field; there are {', '.join(fields)}")
        elif inner is None and type(None) not in _options(fields[key].type):
            problems.add((*path, str(key)), "is empty: give a value or leave the field out")
        elif inner is not None:
            converted = convert(inner, fields[key].type, (*path, str(key)), problems)
            if converted is not None:
                given[key] = converted
    for name, each in fields.items():
        if each.required and name not in value:
            problems.add(path, f"{name} is missing")
    complete = all(name in given for name, each in fields.items() if each.required)
    return kind(**given) if complete else None


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _plain(message: str) -> str:
    for ours, theirs in (("a mapping", "`object`"), ("a list", "`array`"), ("text", "`str`"), ("nothing", "`null`")):
        message = message.replace(theirs, ours)
    return message[0].lower() + message[1:]
