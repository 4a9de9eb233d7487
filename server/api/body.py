"""Request bodies to typed structs; what is wrong with one is said in terms of its fields."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from loraplex.server.api.schema import NOT_USED, Generate
from loraplex.server.errors import BodyTooLarge, InvalidRequest, MalformedJSON, UnknownParameter, UnsupportedParameter

DISCARD = 16
"""Up to so many times the limit is read and thrown away: a client that is cut off while it sends sees a broken
connection instead of the refusal."""

BodyT = TypeVar("BodyT")
GenerateT = TypeVar("GenerateT", bound=Generate)

# msgspec's messages: https://jcristharif.com/msgspec/constraints.html
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?P<problem>missing required|contains unknown) field `(?P<field>[^`]*)`")


async def read(request: Request, kind: type[GenerateT], limit: int) -> GenerateT:
    """As `decode`, and refuses the fields that this server cannot honour."""
    found = await decode(request, kind, limit)
    _refuse_unsupported(found)
    return found


async def decode(request: Request, kind: type[BodyT], limit: int) -> BodyT:
    """Read and check a body of at most `limit` bytes. Raises BodyTooLarge and InvalidRequest."""
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > DISCARD * limit:
            break
    if size > limit:
        raise BodyTooLarge(f"The request body is larger than {limit} bytes, the limit of this server")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJSON(f"The request body is not valid JSON: {error}") from None


def _invalid(message: str) -> InvalidRequest:
    at = _PATH.search(message)
    path = at["path"] if at else ""
    problem = message[: at.start()] if at else message
    if field := _FIELD.search(problem):
        param = f"{path}.{field['field']}" if path else field["field"]
        if field["problem"] == "contains unknown":
            return UnknownParameter(f"Unrecognized request argument supplied: {param}", param=param)
        return InvalidRequest(f"Missing required parameter: {param}", param=param)
    problem = problem.replace("`", "'")
    return InvalidRequest(f"Invalid value for {path or 'the request body'}: {problem}", param=path or None)


def _refuse_unsupported(request: Generate) -> None:
    for name, neutral in NOT_USED.items():
        value = getattr(request, name, None)
        if not any(type(value) is type(accepted) and value == accepted for accepted in neutral):
            raise UnsupportedParameter(f"{name} is not supported: leave it out", param=name)
