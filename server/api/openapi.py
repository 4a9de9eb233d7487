"""Our API in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1), made of the table of `contract` and its structs."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import msgspec

from loraplex.server.api.contract import ADMIN, EVERYWHERE, KEYED, NAMED, OPERATIONS, Operation, Text
from loraplex.server.api.schema import ErrorResponse
from loraplex.server.api.unsupported_fields import NOT_USED

Document = dict[str, Any]

DESCRIPTION = """\
Many LoRA adapters of one base model behind OpenAI's API: the field model names the adapter, or the base.
Errors have OpenAI's shape, {"error": {"message", "type", "param", "code"}}; each status lists its codes."""

REF = "#/components/schemas/{name}"
ERROR: Document = {"$ref": REF.format(name=ErrorResponse.__name__)}
FOREIGN_ERROR: Document = {
    "description": "An error as vLLM says it",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "null"},
                "code": {"type": "integer"},
            },
        }
    },
}


def document() -> Document:
    """The whole document."""
    structs: set[type] = {ErrorResponse}
    for each in OPERATIONS:
        structs.update(kind for kind in (each.body, *each.chunks, *each.answers.values()) if isinstance(kind, type))
    _, components = msgspec.json.schema_components(sorted(structs, key=lambda kind: kind.__name__), ref_template=REF)
    paths: dict[str, Document] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "loraplex", "version": version("loraplex"), "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {name: portable(schema) for name, schema in sorted(components.items())},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def portable(schema: Any) -> Any:
    """A JSON schema that others read as we mean it.

    Patterns get ECMA 262's end of input instead of Python's, and fields that are accepted but not supported say with
    which values.
    """
    if isinstance(schema, list):
        return [portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: portable(value) for name, value in schema.items()}
    if isinstance(found.get("pattern"), str):
        found["pattern"] = found["pattern"].replace(r"\Z", "$")
    if isinstance(properties := found.get("properties"), dict):
        for name in NOT_USED.keys() & properties.keys():
            properties[name] = {"description": "Not supported", "enum": list(NOT_USED[name])}
    return found


def _operation(each: Operation) -> Document:
    words = re.findall(r"\w+", each.path.removeprefix("/v1"))
    found: Document = {
        "operationId": "_".join([each.method.lower(), *words]),
        "summary": each.summary,
        "tags": [each.tag],
    }
    if names := re.findall(r"\{(\w+)\}", each.path):
        string = {"type": "string", "minLength": 1}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": string} for name in names]
    if each.body:
        content: Document = {"application/json": {"schema": _ref(each.body)}}
        if each.files:
            content["multipart/form-data"] = {
                "schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
            }
        found["requestBody"] = {"required": True, "content": content}
    if each.access != "anyone":
        # Either of the two: a server may run without keys.
        found["security"] = [{"key": []}, {}]
    found["responses"] = _responses(each)
    return found


def _responses(each: Operation) -> Document:
    codes: dict[int, set[str]] = {}
    access = {"anyone": (), "key": KEYED, "admin": ADMIN}[each.access]
    for error in (*EVERYWHERE, *(NAMED if "{" in each.path else ()), *access, *each.errors):
        codes.setdefault(error.status, set()).add(error.code or "")
    found: Document = {}
    for status, answer in each.answers.items():
        if isinstance(answer, Text):
            content: Document = {answer.media_type: {"schema": {}}}
        else:
            content = {"application/json": {"schema": _ref(answer)}}
        if each.chunks:
            streamed = "Server-sent events" + (", the last [DONE]" if each.done else "")
            events = [_ref(chunk) for chunk in each.chunks]
            content["text/event-stream"] = {"schema": {"description": streamed, "x-event": {"anyOf": events}}}
        found[str(status)] = {"description": "The answer" if status < 300 else "The same, of what is wrong"}
        found[str(status)]["content"] = content
    for status, said in codes.items():
        schema = {"anyOf": [ERROR, FOREIGN_ERROR]} if each.foreign_errors else ERROR
        if isinstance(instead := each.answers.get(status), type):
            schema = {"anyOf": [_ref(instead), schema]}
        found[str(status)] = {
            "description": "Error " + ", ".join(sorted(said)),
            "content": {"application/json": {"schema": schema}},
        }
        if status in (429, 503):
            after = {"description": "Seconds to wait", "schema": {"type": "string"}}
            found[str(status)]["headers"] = {"retry-after": after}
    return dict(sorted(found.items()))


def _ref(kind: type) -> Document:
    return {"$ref": REF.format(name=kind.__name__)}
