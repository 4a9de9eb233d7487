"""What tests ask of /v1/responses, every answer and event checked with the official client's models."""

from __future__ import annotations

import json
from typing import Any

import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.server.strictness import validated

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OPEN_RESPONSES = frozenset({"frequency_penalty", "presence_penalty", "store"})
"""Fields of a response that Open Responses requires and OpenAI's client does not know."""


def ask(client: openai.OpenAI, **options: Any) -> Response:
    request: dict[str, Any] = {"model": "bytes", "input": "Hello", "max_output_tokens": 12, "temperature": 1}
    extra = {"seed": 7} | options.pop("extra_body", {})
    raw = client.responses.with_raw_response.create(**request | options, extra_body=extra)
    return validated(Response, json.loads(raw.content), known=OPEN_RESPONSES)


def stream(client: openai.OpenAI, **options: Any) -> list[Any]:
    request: dict[str, Any] = {"model": "bytes", "input": "Hello", "max_output_tokens": 12, "temperature": 1}
    extra = {"seed": 7} | options.pop("extra_body", {})
    raw = client.responses.with_raw_response.create(**request | options, extra_body=extra, stream=True)
    found = []
    name = ""
    for line in raw.http_response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            assert data["type"] == name
            found.append(validated(type(EVENTS.validate_python(data)), data, known=OPEN_RESPONSES))
    assert [each.sequence_number for each in found] == list(range(len(found)))
    return found
