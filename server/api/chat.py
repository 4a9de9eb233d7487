"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import check_model, key_of
from loraplex.server.api.answer import Answer, include_usage, stop_strings
from loraplex.server.api.body import read
from loraplex.server.api.logprobs import chat_logprobs
from loraplex.server.api.sampling import for_choice, guide, sampling
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
from loraplex.server.api.stream import event, json_response
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Job, token_budget
from loraplex.server.registry import Model
from loraplex.server.serving import Serving, serving


async def chat_completions(request: Request) -> Response:
    server = serving(request)
    arrived = time.perf_counter()
    key = key_of(request)
    body = await read(request, ChatRequest, server.settings.max_body_bytes)
    with_usage = include_usage(body)
    with ExitStack() as held:
        check_model(key, body.model)
        model = held.enter_context(server.registry.use(body.model))
        answer = Answer(server, await _jobs(server, model, body, arrived), "chatcmpl", held.pop_all())
    if body.stream:
        return answer.stream(_chunks(server, answer, with_usage))
    return await answer.whole(request, _complete(server, answer))


async def _jobs(server: Serving, model: Model, body: ChatRequest, arrived: float) -> list[Job]:
    prompt = await server.text.encode(_prompt(model, body), add_special_tokens=False)
    budget = token_budget(
        len(prompt), _max_tokens(body, model), server.settings.default_max_tokens, server.context_length, "messages"
    )
    first = sampling(server, body, model, logprobs=_logprobs(body))
    must_be = await guide(server, body)
    stop = stop_strings(body)
    return [
        Job(model, prompt, budget, for_choice(first, choice), must_be, stop, arrived, continues_prompt=False)
        for choice in range(body.n or 1)
    ]


def _logprobs(body: ChatRequest) -> int | None:
    """How many of the likeliest tokens to report; None for no log probabilities at all."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return None


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


async def _complete(server: Serving, answer: Answer) -> Response:
    tokenizer = server.text.tokenizer
    choices = [
        ChatChoice(
            index,
            AssistantMessage(choice.text),
            choice.finish,
            chat_logprobs(tokenizer, choice.tokens, choice.logprobs),
        )
        for index, choice in enumerate(await answer.collect())
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


async def _chunks(server: Serving, answer: Answer, with_usage: bool) -> AsyncGenerator[bytes, None]:
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
            if delta.text or delta.logprobs:
                logprobs = chat_logprobs(server.text.tokenizer, delta.tokens, delta.logprobs)
                yield chunk([ChatChunkChoice(index, ChatDelta(content=delta.text), None, logprobs)])
            if delta.finish:
                yield chunk([ChatChunkChoice(index, ChatDelta(), delta.finish)])
    if with_usage:
        yield chunk([], answer.usage())
