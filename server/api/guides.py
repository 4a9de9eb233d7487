"""What an answer must be, out of the fields that OpenAI and vLLM have for it."""

from __future__ import annotations

import json
from typing import Any

from loraplex.server.api.sampling import unsupported
from loraplex.server.api.schema import ChatRequest, Generate, JSONObjectFormat, JSONSchemaFormat
from loraplex.server.engine.messages import Guide
from loraplex.server.errors import InvalidRequest
from loraplex.server.serving import Serving
from loraplex.server.text.guide import LONGEST

WHITE_SPACE = r"[\x20\x0A\x0D\x09]{0,32}"
"""Between two tokens of JSON, at most: room for a new line and an indent. Where it may go on for ever, a model that is
lost writes nothing else until max_tokens."""


async def guide(server: Serving, request: Generate) -> Guide | None:
    """Raises InvalidRequest where the answer cannot be guided as asked, and UnsupportedParameter."""
    found = guide_of(request)
    if found is None:
        return None
    param, wanted = found
    await check(server, wanted, param)
    return wanted


async def check(server: Serving, wanted: Guide, param: str) -> None:
    """Raises UnsupportedParameter where the lane has no guides, InvalidRequest where this one cannot be compiled."""
    if "guide" in server.engine.unsupported:
        raise unsupported(server, "guide", param)
    await server.guides.check(wanted, param)


def guide_of(request: Generate) -> tuple[str, Guide] | None:
    """The guide with the field it came in. Raises InvalidRequest for several."""
    found = {}
    if isinstance(request, ChatRequest):
        match request.response_format:
            case JSONObjectFormat():
                found["response_format"] = Guide("json_schema", _schema({"type": "object"}))
            case JSONSchemaFormat(json_schema=named):
                found["response_format"] = Guide("json_schema", _schema(named.schema or {}))
    for field, wanted in (
        ("guided_json", request.guided_json),
        ("guided_regex", request.guided_regex),
        ("guided_grammar", request.guided_grammar),
        ("guided_choice", request.guided_choice),
    ):
        if wanted is not None:
            found[field] = _guide(field.removeprefix("guided_"), wanted)
    if (outputs := request.structured_outputs) is not None:
        for kind in ("json", "regex", "grammar", "choice", "json_object"):
            wanted = getattr(outputs, kind)
            if wanted is not None and wanted is not False:
                found[f"structured_outputs.{kind}"] = _guide(kind, wanted)
    if len(found) > 1:
        raise InvalidRequest(f"{' and '.join(found)} both say what the answer must be: send one", param=min(found))
    return next(iter(found.items()), None)


def _guide(kind: str, wanted: Any) -> Guide:
    match kind:
        case "json":
            return Guide("json_schema", _schema(wanted))
        case "json_object":
            return Guide("json_schema", _schema({"type": "object"}))
        case "choice":
            return Guide("grammar", "start: " + " | ".join(map(json.dumps, wanted)))
        case "regex":
            return Guide("regex", wanted)
        case _:
            return Guide("grammar", wanted)


def _schema(schema: str | dict[str, Any]) -> str:
    """The text of a schema, which says how much white space there may be, unless it does already.

    By llguidance's keyword: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
    """
    try:
        if isinstance(schema, str) and len(schema) > LONGEST:
            return schema  # and is refused for it
        found = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(found, dict):
            return json.dumps(found)
        return json.dumps({"x-guidance": {"whitespace_pattern": WHITE_SPACE}, **found})
    except RecursionError:
        raise InvalidRequest("the JSON schema is nested too deeply") from None
    except ValueError:  # what is wrong is said by who compiles it
        return str(schema)
