"""GET /openapi.json and GET /docs: what this server answers, for programs and for people."""

from __future__ import annotations

from functools import cache

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from loraplex.server.api.openapi import Document, document


async def openapi(_request: Request) -> Response:
    return Response(_json(), media_type="application/json")


async def docs(_request: Request) -> Response:
    # The page is one file and runs nothing.
    return HTMLResponse(_page(), headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})


@cache
def _json() -> bytes:
    return msgspec.json.encode(document())


@cache
def _page() -> str:
    environment = Environment(
        loader=PackageLoader("loraplex.server", "api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = kind
    return environment.get_template("reference.html.jinja").render(document=document())


def kind(schema: Document) -> list[tuple[str, str | None]]:
    """A schema in a few words, as pieces of text, each with the name of the component that it refers to, if it does."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [(name, name)]
    if "enum" in schema:
        return [(" | ".join(msgspec.json.encode(each).decode() for each in schema["enum"]), None)]
    if "const" in schema:
        return [(msgspec.json.encode(schema["const"]).decode(), None)]
    if "anyOf" in schema:
        pieces: list[tuple[str, str | None]] = []
        for each in schema["anyOf"]:
            pieces += ([(" | ", None)] if pieces else []) + kind(each)
        return pieces
    if schema.get("type") == "array":
        return [("list of ", None), *kind(schema.get("items", {})), *_limits(schema, "Items", " of them")]
    if isinstance(values := schema.get("additionalProperties"), dict):
        return [("by name: ", None), *kind(values)]
    limits = [*_limits(schema, "Length", " characters"), *_limits(schema, "imum", "")]
    return [(schema.get("type", "anything"), None), *limits]


def _limits(schema: Document, suffix: str, unit: str) -> list[tuple[str, str | None]]:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    above = schema.get("exclusiveMinimum") if suffix == "imum" else None
    said = f"> {above}" if above is not None else "" if low is None else f"≥ {low}"
    if high is not None:
        said += f"{', ' if said else ''}≤ {high}"
    return [(f" ({said}{unit})", None)] if said else []
