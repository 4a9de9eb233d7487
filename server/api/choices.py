"""The values that a field of a request may have, as msgspec reads its type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from msgspec import inspect

Union = tuple[inspect.Type, ...]

_STEP = re.compile(r"\[[^\]]*\]|[^.\[]+")


@cache
def choices(kind: object, path: str) -> tuple[str, ...]:
    """The strings that may stand at `path` of a body, such as `messages[].role`.

    None where others may too, or where it depends on another field. `path` is in msgspec's words, but without indexes.
    """
    *steps, last = _STEP.findall(path)
    unions = [_union(inspect.type_info(kind))]
    for step in steps:
        unions = [inner for union in unions for each in union for inner in _inside(each, step)]
    found = {_choices(union, last) for union in unions} - {()}
    return found.pop() if len(found) == 1 else ()


def _choices(union: Union, last: str) -> tuple[str, ...]:
    tags = [str(each.tag) for each in union if isinstance(each, inspect.StructType) and each.tag_field == last]
    literals = [
        str(value)
        for each in union
        for inner in _inside(each, last)
        for literal in inner
        if isinstance(literal, inspect.LiteralType)
        for value in literal.values
    ]
    return tuple(tags or literals)


def _inside(kind: inspect.Type, step: str) -> Iterator[Union]:
    if isinstance(kind, inspect.StructType):
        yield from (_union(field.type) for field in kind.fields if field.encode_name == step)
    elif isinstance(kind, inspect.ListType) and step[0] == "[":
        yield _union(kind.item_type)


def _union(kind: inspect.Type) -> Union:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)
