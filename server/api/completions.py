"""POST /v1/completions: plain prompts, as text or as token ids, one or several."""

from __future__ import annotations

import time
from contextlib import ExitStack

from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.answer import Answer, Reporting, reporting, stop_strings
from loraplex.server.api.body import read
from loraplex.server.api.echo import Echo, echoes, joined
from loraplex.server.api.envelope import TEXT, Envelope, TextChunks
from loraplex.server.api.guides import guide
from loraplex.server.api.logprobs import completion_logprobs
from loraplex.server.api.prompt import encode_prompt
from loraplex.server.api.sampling import for_choice, hidden_tokens, sampling
from loraplex.server.api.schema import MAX_CHOICES, Completion, CompletionChoice, CompletionRequest, Usage
from loraplex.server.api.stream import Write, json_response
from loraplex.server.errors import InvalidRequest, UnsupportedParameter
from loraplex.server.generation import Delta, Job, token_budget
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
        name = await find_model(server, key, body.model)
        model = held.enter_context(server.registry.use(name))
        jobs = await _jobs(server, model, body, arrived)
        echo = echoes(server, body, jobs)
        answer = Answer(server, jobs, "cmpl", held.pop_all(), body.timeout)
    if body.stream:
        return answer.stream(_Chunks(server, answer, body, echo, reported).tell)
    return await answer.whole(request, _complete(server, answer, body, echo))


async def _jobs(server: Serving, model: Model, body: CompletionRequest, arrived: float) -> list[Job]:
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens is 0, which leaves nothing to answer: set echo too", param="max_tokens")
    count = body.n or 1
    prompts = await _prompts(server, body, MAX_CHOICES // count)
    wanted = 1 if body.max_tokens == 0 else body.max_tokens  # at least one: that is how prompts are computed
    first = sampling(server, body, model, logprobs=body.logprobs)
    if body.echo and body.logprobs is not None:
        if "prompt_logprobs" in server.engine.unsupported:
            raise UnsupportedParameter(
                "echo with logprobs is not supported by this engine: leave one out", param="echo"
            )
        first = replace(first, prompt_logprobs=body.logprobs)
    must_be = await guide(server, body)
    stop = stop_strings(body)
    jobs = []
    for prompt in prompts:
        budget = token_budget(
            len(prompt),
            wanted,
            model.max_tokens(DEFAULT_MAX_TOKENS),
            context=server.context_length,
            kv_tokens=server.engine.kv_tokens,
            param="prompt",
        )
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
        prompts = [await encode_prompt(server, str(item), add_special_tokens=True, param="prompt") for item in given]
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


async def _complete(server: Serving, answer: Answer, body: CompletionRequest, echo: list[Echo] | None) -> Response:
    tokenizer = server.text.tokenizer
    choices = []
    for index, choice in enumerate(await answer.collect()):
        before = echo[index].text if echo else ""
        offsets = [len(before) + offset for offset in choice.offsets]
        logprobs = completion_logprobs(tokenizer, choice.tokens, choice.logprobs, offsets)
        text, finish = choice.text, choice.finish
        if body.max_tokens == 0:
            text, finish, logprobs = "", "length", None
        if echo and choice.prompt_logprobs is not None:
            logprobs = joined(echo[index].logprobs(server.text, choice.prompt_logprobs), logprobs)
        choices.append(CompletionChoice(index, before + text, finish, logprobs))
    return json_response(_completion(answer, choices, _usage(answer, body)))


class _Chunks:
    """Chunks of every choice, its prompt first where it is echoed, and usage after all of them if asked for."""

    def __init__(
        self, server: Serving, answer: Answer, body: CompletionRequest, echo: list[Echo] | None, reported: Reporting
    ) -> None:
        self.text = server.text
        self.answer = answer
        self.body = body
        self.echo = echo
        self.reported = reported
        self.envelope = Envelope(_completion(answer, [], UNSET))

    async def tell(self, write: Write) -> None:
        if self.body.logprobs is None:
            for index, before in enumerate(self.echo or ()):
                write(self.event(CompletionChoice(index, before.text)))
        await self.answer.run(lambda index: _ChoiceChunks(self, index, write).take)
        if self.reported != "never":
            write(self.envelope.event([], _usage(self.answer, self.body)))

    def event(self, choice: CompletionChoice) -> bytes:
        return self.envelope.event([choice], self.answer.chunk_usage(self.reported))


class _ChoiceChunks(TextChunks):
    """What is echoed of the prompt first, where that has logprobs."""

    __slots__ = ("_chunks", "_echo", "_index", "_length")

    def __init__(self, chunks: _Chunks, index: int, write: Write) -> None:
        super().__init__(write)
        self._chunks = chunks
        self._index = index
        self._echo = chunks.echo[index] if chunks.echo else None
        self._length = len(self._echo.text) if self._echo else 0
        """Characters of the choice's text so far; counted where chunks may have logprobs, which tell it."""
        usage = chunks.answer.chunk_usage(chunks.reported)
        if chunks.body.logprobs is None and chunks.body.max_tokens != 0 and not isinstance(usage, Usage):
            self._plain = chunks.envelope.texts(CompletionChoice(index, TEXT), usage)

    def _events(self, delta: Delta) -> bytes:
        chunks, index = self._chunks, self._index
        found = b""
        if self._echo and delta.prompt_logprobs is not None:
            of_prompt = self._echo.logprobs(chunks.text, delta.prompt_logprobs)
            found = chunks.event(CompletionChoice(index, self._echo.text, None, of_prompt))
        offset = self._length
        self._length += len(delta.text)
        if chunks.body.max_tokens == 0:
            return found + chunks.event(CompletionChoice(index, "", "length"))
        if delta.text or delta.finish or delta.logprobs:
            offsets = [offset] * len(delta.tokens)
            logprobs = completion_logprobs(chunks.text.tokenizer, delta.tokens, delta.logprobs, offsets)
            found += chunks.event(CompletionChoice(index, delta.text, delta.finish, logprobs))
        return found


def _usage(answer: Answer, body: CompletionRequest) -> Usage:
    found = answer.usage()
    if body.max_tokens == 0:  # the one token that was computed is none of the answer's
        return replace(found, completion_tokens=0, total_tokens=found.prompt_tokens)
    return found


def _completion(answer: Answer, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
    return Completion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=choices,
        usage=usage,
        system_fingerprint=answer.fingerprint,
    )
