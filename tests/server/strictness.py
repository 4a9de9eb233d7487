"""Answers against the official client's models, which otherwise let anything pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import pydantic

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


def validated(kind: type[ModelT], data: Any, *, known: frozenset[str] = frozenset()) -> ModelT:
    """`data` as a `kind`; fails on a wrong type anywhere, and on fields that OpenAI's API has not, but for `known`."""
    found = kind.model_validate(data)
    extra = set(_extra(found)) - known
    assert not extra, f"{kind.__name__} has no {sorted(extra)}"
    return found


def _extra(value: object) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from _extra(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _extra(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _extra(item)
