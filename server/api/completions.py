"""POST /v1/completions: plain prompts, as text or as token ids, one or several."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import check_model, key_of
from loraplex.server.api.answer import Answer, Reporting, reporting, stop_strings
from loraplex.server.api.body import read
from loraplex.server.api.guides import guide
from loraplex.server.api.logprobs import completion_logprobs
from loraplex.server.api.sampling import for_choice, hidden_tokens, sampling
from loraplex.server.api.schema import MAX_CHOICES, Completion, CompletionChoice, CompletionRequest, Usage
from loraplex.server.api.stream import event, json_response
from loraplex.server.errors import InvalidRequest, UnsupportedParameter
from loraplex.server.generation import Job, token_budget
from loraplex.server.model import Model
from loraplex.server.serving import Serving, serving

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""


async def completions(request: Request) -> Response:
    server = serving(request)
    arrived = time.perf_counter()
    key = key_of(request)
    body = await read(request, CompletionRequest, server.settings.max_body_bytes)
    reported = reporting(body)
    with ExitStack() as held:
        await check_model(server, key, body.model)
        model = held.enter_context(server.registry.use(body.model))
        jobs = await _jobs(server, model, body, arrived)
        echo = _echo(server, body, jobs)
        answer = Answer(server, jobs, "cmpl", held.pop_all(), body.timeout)
    if body.stream:
        return answer.stream(_chunks(server, answer, echo, reported))
    return await answer.whole(request, _complete(server, answer, echo))


async def _jobs(server: Serving, model: Model, body: CompletionRequest, arrived: float) -> list[Job]:
    if body.echo and body.logprobs is not None:
        raise UnsupportedParameter("echo with logprobs is not supported: leave one out", param="echo")
    count = body.n or 1
    prompts = await _prompts(server, body, MAX_CHOICES // count)
    defaults = (each.max_tokens for each in model.sampling)
    wanted = next((limit for limit in (body.max_tokens, *defaults) if limit is not None), None)
    first = sampling(server, body, model, logprobs=body.logprobs)
    must_be = await guide(server, body)
    stop = stop_strings(body)
    jobs = []
    for prompt in prompts:
        budget = token_budget(len(prompt), wanted, DEFAULT_MAX_TOKENS, server.context_length, "prompt")
        jobs += [
            Job(
                model,
                prompt,
                budget,
                for_choice(first, choice),
                must_be,
                stop,
                arrived,
                continues_prompt=True,
                hidden=hidden_tokens(body),
                include_stop=body.include_stop_str_in_output or False,
            )
            for choice in range(count)
        ]
    return jobs


async def _prompts(server: Serving, body: CompletionRequest, most: int) -> list[list[int]]:
    """Token ids of every prompt. Raises InvalidRequest for more than `most`, empty ones and ids out of range."""
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    prompts: list[list[int]]
    if all(isinstance(item, int) for item in given):
        prompts = [[item for item in given if isinstance(item, int)]]
    elif len(given) > most:  # said before any of them is encoded, which takes its time
        raise InvalidRequest(
            f"{len(given)} prompts with n={body.n or 1} make more than {MAX_CHOICES} choices: send fewer at once",
            param="n",
        )
    elif all(isinstance(item, str) for item in given):
        prompts = [await server.text.encode(str(item), add_special_tokens=True) for item in given]
    elif all(isinstance(item, list) for item in given):
        prompts = [item for item in given if isinstance(item, list)]
    else:
        raise InvalidRequest("prompt mixes texts, token ids and lists of token ids: use one of them", param="prompt")
    vocab_size = server.bundle.manifest.base.vocab_size
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest("prompt is empty: it needs at least one token", param="prompt")
        if wrong := next((token for token in prompt if not 0 <= token < vocab_size), None):
            raise InvalidRequest(
                f"token id {wrong} is out of range: this model has ids 0 to {vocab_size - 1}", param="prompt"
            )
    return prompts


def _echo(server: Serving, body: CompletionRequest, jobs: list[Job]) -> list[str]:
    """What the text of each choice begins with: its prompt as it was sent, or the text of its token ids."""
    if not body.echo:
        return [""] * len(jobs)
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    count, skip = body.n or 1, body.skip_special_tokens is not False
    return [
        text
        if isinstance(text := given[min(index // count, len(given) - 1)], str)
        else str(server.text.tokenizer.decode(job.prompt, skip_special_tokens=skip))
        for index, job in enumerate(jobs)
    ]


async def _complete(server: Serving, answer: Answer, echo: list[str]) -> Response:
    tokenizer = server.text.tokenizer
    choices = [
        CompletionChoice(
            index,
            echo[index] + choice.text,
            choice.finish,
            completion_logprobs(tokenizer, choice.tokens, choice.logprobs, choice.offsets),
        )
        for index, choice in enumerate(await answer.collect())
    ]
    return json_response(_completion(answer, choices, answer.usage()))


async def _chunks(server: Serving, answer: Answer, echo: list[str], reported: Reporting) -> AsyncGenerator[bytes, None]:
    for index, text in enumerate(echo):
        if text:
            yield event(_completion(answer, [CompletionChoice(index, text)], answer.chunk_usage(reported)))
    lengths: dict[int, int] = {}
    async with aclosing(answer.deltas()) as deltas:
        async for index, delta in deltas:
            offset = lengths.get(index, 0)
            lengths[index] = offset + len(delta.text)
            if delta.text or delta.finish or delta.logprobs:
                offsets = [offset] * len(delta.tokens)
                logprobs = completion_logprobs(server.text.tokenizer, delta.tokens, delta.logprobs, offsets)
                choice = CompletionChoice(index, delta.text, delta.finish, logprobs)
                yield event(_completion(answer, [choice], answer.chunk_usage(reported)))
    if reported != "never":
        yield event(_completion(answer, [], answer.usage()))


def _completion(answer: Answer, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
    return Completion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=choices,
        usage=usage,
        system_fingerprint=answer.fingerprint,
    )
