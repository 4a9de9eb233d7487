"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from contextlib import ExitStack

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.answer import Answer, Reporting, reporting, stop_strings
from loraplex.server.api.body import read
from loraplex.server.api.conversation import FunctionDelta, ToolCallDelta
from loraplex.server.api.envelope import TEXT, Envelope, TextChunks
from loraplex.server.api.guides import guide
from loraplex.server.api.logprobs import chat_logprobs
from loraplex.server.api.prompt import encode_prompt, render
from loraplex.server.api.reading import Reading, whole
from loraplex.server.api.sampling import for_choice, hidden_tokens, sampling
from loraplex.server.api.schema import (
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatRequest,
    Usage,
)
from loraplex.server.api.stream import Write, json_response
from loraplex.server.api.tools import Calling, calling
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Delta, Job, token_budget
from loraplex.server.model import Model
from loraplex.server.serving import Serving, serving
from loraplex.server.text.tool_format import ToolFormat
from loraplex.server.text.tool_parser import ArgumentsText, CallBegun, Piece


async def chat_completions(request: Request) -> Response:
    server = serving(request)
    arrived = time.perf_counter()
    key = key_of(request)
    body = await read(request, ChatRequest, server.settings.max_body_bytes)
    reported = reporting(body)
    with ExitStack() as held:
        name = await find_model(server, key, body.model)
        model = held.enter_context(server.registry.use(name))
        jobs, tool_format = await prepare(server, model, body, arrived)
        answer = Answer(server, jobs, "chatcmpl", held.pop_all(), body.timeout)
    if body.stream:
        return answer.stream(_Chunks(server, answer, body, tool_format, reported).tell)
    return await answer.whole(request, _complete(server, answer, tool_format))


async def prepare(
    server: Serving, model: Model, body: ChatRequest, arrived: float
) -> tuple[list[Job], ToolFormat | None]:
    """One job for each choice, and how their answers call tools, if they may."""
    may_call = await calling(server, model, body)
    text = await prompt_text(model, body, may_call)
    prompt = await encode_prompt(server, text, add_special_tokens=False, param="messages")
    budget = token_budget(
        len(prompt),
        _max_tokens(body),
        model.max_tokens(server.settings.default_max_tokens),
        context=server.context_length,
        kv_tokens=server.engine.kv_tokens,
        param="messages",
    )
    first = sampling(server, body, model, logprobs=_logprobs(body))
    must_be = may_call.guide if may_call else await guide(server, body)
    jobs = [
        Job(
            model,
            prompt,
            budget,
            for_choice(first, choice),
            must_be,
            stop_strings(body),
            arrived,
            continues_prompt=False,
            hidden=hidden_tokens(body, may_call.hidden if may_call else None),
            include_stop=body.include_stop_str_in_output or False,
        )
        for choice in range(body.n or 1)
    ]
    return jobs, may_call.format if may_call else None


async def prompt_text(model: Model, body: ChatRequest, may_call: Calling | None) -> str:
    """Raises InvalidRequest where the template refuses."""
    tools = may_call.tools if may_call else ()
    return await render(model, body.messages, tools, variables=body.chat_template_kwargs)


def _logprobs(body: ChatRequest) -> int | None:
    """How many of the likeliest tokens to report; None for no log probabilities at all."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return None


def _max_tokens(body: ChatRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest("max_tokens and max_completion_tokens differ: send one", param="max_completion_tokens")
    return old if new is None else new


async def _complete(server: Serving, answer: Answer, tool_format: ToolFormat | None) -> Response:
    choices = []
    for index, choice in enumerate(await answer.collect()):
        found = whole(tool_format, choice)
        message = AnswerMessage(found.text or (None if found.calls else ""), tool_calls=found.calls or UNSET)
        logprobs = chat_logprobs(server.text.tokenizer, choice.tokens, choice.logprobs)
        choices.append(ChatChoice(index, message, found.finish, logprobs))
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


class _Chunks:
    """Chunks of every choice, and usage after all of them if asked for."""

    def __init__(
        self, server: Serving, answer: Answer, body: ChatRequest, tool_format: ToolFormat | None, reported: Reporting
    ) -> None:
        self.tokenizer = server.text.tokenizer
        self.answer = answer
        self.body = body
        self.tool_format = tool_format
        self.reported = reported
        self.envelope = Envelope(
            ChatCompletionChunk(
                id=answer.id,
                created=answer.created,
                model=answer.model,
                choices=[],
                system_fingerprint=answer.fingerprint,
            )
        )

    async def tell(self, write: Write) -> None:
        await self.answer.run(lambda index: _ChoiceChunks(self, index, write).take)
        if self.reported != "never":
            write(self.envelope.event([], self.answer.usage()))


class _ChoiceChunks(TextChunks):
    """The role first, the finish reason last."""

    __slots__ = ("_chunks", "_index", "_reading")

    def __init__(self, chunks: _Chunks, index: int, write: Write) -> None:
        super().__init__(write)
        self._chunks = chunks
        self._index = index
        self._reading: Reading | None = None

    def _events(self, delta: Delta) -> bytes:
        chunks, index = self._chunks, self._index
        found: list[ChatChunkChoice] = []
        usage = chunks.answer.chunk_usage(chunks.reported)
        if self._reading is None:
            self._reading = Reading(chunks.tool_format)
            found.append(ChatChunkChoice(index, ChatDelta("assistant", "")))
            if chunks.tool_format is None and not chunks.body.logprobs and not isinstance(usage, Usage):
                self._plain = chunks.envelope.texts(ChatChunkChoice(index, ChatDelta(content=TEXT)), usage)
        pieces, finish = self._reading.read(delta)
        logprobs = chat_logprobs(chunks.tokenizer, delta.tokens, delta.logprobs)
        for piece in pieces or ([""] if logprobs else []):
            found.append(ChatChunkChoice(index, _delta(self._reading, piece), None, logprobs))
            logprobs = None
        if finish:
            found.append(ChatChunkChoice(index, ChatDelta(), finish))
        return b"".join([chunks.envelope.event([choice], usage) for choice in found])


def _delta(reading: Reading, piece: Piece) -> ChatDelta:
    match piece:
        case str():
            return ChatDelta(content=piece)
        case CallBegun():
            function = FunctionDelta(piece.name, "")
            return ChatDelta(tool_calls=[ToolCallDelta(piece.call, function, reading.call_id(), "function")])
        case ArgumentsText():
            return ChatDelta(tool_calls=[ToolCallDelta(piece.call, FunctionDelta(arguments=piece.text))])
