"""Request bodies to typed structs; what is wrong with one is said in terms of its fields."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from loraplex.server.api.choices import choices
from loraplex.server.api.unsupported_fields import refuse_unsupported
from loraplex.server.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidRequest,
    MalformedJSON,
    UnknownParameter,
)

DISCARD = 16
"""Up to so many times the limit is read and thrown away: a client that is cut off while it sends sees a broken
connection instead of the refusal."""

SECONDS = 60.0
"""A body has to be there within."""

BodyT = TypeVar("BodyT")
StructT = TypeVar("StructT", bound=msgspec.Struct)

# msgspec's messages: https://jcristharif.com/msgspec/constraints.html
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_CHOICE = re.compile(r"Invalid (enum )?value '")
_INDEX = re.compile(r"\[\d+\]")
_FIELD = re.compile(r"(?P<problem>missing required|contains unknown) field `(?P<field>[^`]*)`")


async def read(request: Request, kind: type[StructT], limit: int) -> StructT:
    """As `decode`, and refuses the fields that this server cannot honour."""
    found = await decode(request, kind, limit)
    refuse_unsupported(found)
    return found


async def decode(request: Request, kind: type[BodyT], limit: int) -> BodyT:
    """Read and check a body of at most `limit` bytes. Raises BodyTooLarge, BodyTooSlow and InvalidRequest."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > DISCARD * limit:
                    break
    except TimeoutError:
        raise BodyTooSlow(f"The request body was not there within {SECONDS:.0f} s") from None
    if size > limit:
        raise BodyTooLarge(f"The request body is larger than {limit} bytes, the limit of this server")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJSON(f"The request body is not valid JSON: {error}") from None


def convert(value: object, kind: type[BodyT], path: str) -> BodyT:
    """A decoded part of a body, found at `path`, as a struct. Raises InvalidRequest."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind, path) from None


def _invalid(message: str, kind: object, within: str = "") -> InvalidRequest:
    at = _PATH.search(message)
    path = ".".join(filter(None, (within, at["path"] if at else "")))
    problem = message[: at.start()] if at else message
    if field := _FIELD.search(problem):
        param = f"{path}.{field['field']}" if path else field["field"]
        if field["problem"] == "contains unknown":
            return UnknownParameter(f"Unrecognized request argument supplied: {param}", param=param)
        return InvalidRequest(f"Missing required parameter: {param}", param=param)
    problem = problem.replace("`", "'")
    if at and _CHOICE.match(problem) and (known := choices(kind, _INDEX.sub("[]", at["path"]))):
        problem += f", give {' or '.join(map(repr, known))}"
    return InvalidRequest(f"Invalid value for {path or 'the request body'}: {problem}", param=path or None)
