"""POST /v1/responses/input_tokens: how many tokens a response's prompt would have."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.body import read
from loraplex.server.api.chat import prompt_text
from loraplex.server.api.responses_input import chat_request, restated
from loraplex.server.api.responses_schema import ResponsesRequest
from loraplex.server.api.stream import json_response
from loraplex.server.api.tools import calling
from loraplex.server.errors import InvalidRequest
from loraplex.server.serving import serving


class InputTokens(Struct, frozen=True):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


async def input_tokens(request: Request) -> Response:
    """Takes the body of a response, of which what concerns the answer only changes nothing."""
    server, key = serving(request), key_of(request)
    body = await read(request, ResponsesRequest, server.settings.max_body_bytes)
    name = await find_model(server, key, body.model)
    with server.registry.use(name) as model:
        try:
            chat = chat_request(body)
            text = await prompt_text(model, chat, await calling(server, model, chat))
        except InvalidRequest as error:
            raise restated(error) from None
    return json_response(InputTokens(len(await server.text.encode(text, add_special_tokens=False))))
