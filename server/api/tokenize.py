"""POST /tokenize and /detokenize, as vLLM answers them (vllm/entrypoints/serve/tokenize/protocol.py)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.body import decode
from loraplex.server.api.conversation import ChatMessage, Tools
from loraplex.server.api.prompt import render
from loraplex.server.api.schema import ModelName
from loraplex.server.api.stream import json_response
from loraplex.server.api.tools import plain
from loraplex.server.errors import InvalidRequest
from loraplex.server.keys import Key
from loraplex.server.model import Model
from loraplex.server.serving import Serving, serving


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Either a prompt or messages. Without a model it is --default-model, else the base."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    """True for a prompt where left out, and false for messages, whose template adds them."""
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class Tokens(Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[int]
    model: ModelName | None = None


class Prompt(Struct, frozen=True):
    prompt: str


async def tokenize(request: Request) -> Response:
    server, key = serving(request), key_of(request)
    body = await decode(request, TokenizeRequest, server.settings.max_body_bytes)
    model = await _model(server, key, body.model)
    text, special = await _text(model, body)
    wanted = special if body.add_special_tokens is None else body.add_special_tokens
    tokens = await server.text.encode(text, add_special_tokens=wanted)
    pieces = server.text.tokenizer.id_to_token
    return json_response(
        Tokens(
            len(tokens),
            server.context_length,
            tokens,
            [pieces(token) or "" for token in tokens] if body.return_token_strs else None,
        )
    )


async def detokenize(request: Request) -> Response:
    server, key = serving(request), key_of(request)
    body = await decode(request, DetokenizeRequest, server.settings.max_body_bytes)
    await _model(server, key, body.model)
    vocab_size = server.bundle.manifest.base.vocab_size
    if wrong := [token for token in body.tokens if not 0 <= token < vocab_size]:
        raise InvalidRequest(
            f"token id {wrong[0]} is out of range: this model has ids 0 to {vocab_size - 1}", param="tokens"
        )
    return json_response(Prompt(server.text.tokenizer.decode(body.tokens, skip_special_tokens=False)))


async def _model(server: Serving, key: Key | None, name: str | None) -> Model:
    wanted = name or server.settings.default_model or server.registry.base.name
    return server.registry.get(await find_model(server, key, wanted))


async def _text(model: Model, body: TokenizeRequest) -> tuple[str, bool]:
    """The text, and whether special tokens are added to one of its kind."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either prompt or messages", param="prompt")
    if body.messages is None:
        assert body.prompt is not None
        if body.tools:
            raise InvalidRequest("tools go with messages", param="tools")
        return body.prompt, True
    tools: list[dict[str, Any]] = [plain(tool.function) for tool in body.tools or []]
    text = await render(
        model,
        body.messages,
        tools,
        add_generation_prompt=body.add_generation_prompt,
        variables=body.chat_template_kwargs,
    )
    return text, False
