"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.answer import Answer, include_usage, sampling, stop_strings
from loraplex.server.api.body import read
from loraplex.server.api.schema import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatRequest,
    Usage,
)
from loraplex.server.api.stream import EventStream, event, events, json_response, unless_disconnected
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Job, token_budget
from loraplex.server.registry import Model
from loraplex.server.serving import Serving, serving


async def chat_completions(request: Request) -> Response:
    server = serving(request)
    arrived = time.perf_counter()
    body = await read(request, ChatRequest, server.settings.max_body_bytes)
    with_usage = include_usage(body)
    answer = Answer(server, await _jobs(server, body, arrived), "chatcmpl")
    if body.stream:
        return EventStream(events(_chunks(answer, with_usage)), answer.close, server.settings.drain_timeout)
    try:
        return await unless_disconnected(request, _complete(answer))
    finally:
        answer.close()


async def _jobs(server: Serving, body: ChatRequest, arrived: float) -> list[Job]:
    model = server.registry.get(body.model)
    prompt = await server.text.encode(_prompt(model, body), add_special_tokens=False)
    budget = token_budget(
        len(prompt), _max_tokens(body, model), server.settings.default_max_tokens, server.context_length, "messages"
    )
    stop = stop_strings(body)
    return [
        Job(model, prompt, budget, sampling(body, model, choice), stop, arrived, continues_prompt=False)
        for choice in range(body.n or 1)
    ]


def _prompt(model: Model, body: ChatRequest) -> str:
    if model.template is None:
        raise InvalidRequest(f"{model.name!r} has no chat template: use /v1/completions", param="messages")
    # OpenAI's newer name for the system role; templates know the older one.
    roles = {"developer": "system"}
    messages = [{"role": roles.get(message.role, message.role), "content": message.text()} for message in body.messages]
    return model.template.render(messages)


def _max_tokens(body: ChatRequest, model: Model) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest("max_tokens and max_completion_tokens differ: send one", param="max_completion_tokens")
    defaults = (each.max_tokens for each in model.sampling)
    return next((limit for limit in (new, old, *defaults) if limit is not None), None)


async def _complete(answer: Answer) -> Response:
    choices = [
        ChatChoice(index, AssistantMessage(text), finish) for index, (text, finish) in enumerate(await answer.collect())
    ]
    return json_response(
        ChatCompletion(
            id=answer.id,
            created=answer.created,
            model=answer.model,
            choices=choices,
            usage=answer.usage(),
            system_fingerprint=answer.fingerprint,
        )
    )


async def _chunks(answer: Answer, with_usage: bool) -> AsyncGenerator[bytes, None]:
    """Chunks of every choice: the role first, the finish reason last, and usage after all of them if asked for."""

    def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
        return event(
            ChatCompletionChunk(
                id=answer.id,
                created=answer.created,
                model=answer.model,
                choices=choices,
                usage=usage if with_usage else UNSET,
                system_fingerprint=answer.fingerprint,
            )
        )

    begun: set[int] = set()
    async with aclosing(answer.deltas()) as deltas:
        async for index, delta in deltas:
            if index not in begun:
                begun.add(index)
                yield chunk([ChatChunkChoice(index, ChatDelta("assistant", ""))])
            if delta.text:
                yield chunk([ChatChunkChoice(index, ChatDelta(content=delta.text))])
            if delta.finish:
                yield chunk([ChatChunkChoice(index, ChatDelta(), delta.finish)])
    if with_usage:
        yield chunk([], answer.usage())
