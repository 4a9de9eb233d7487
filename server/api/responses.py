"""POST /v1/responses: the same answers as chat completions, in the words of OpenAI's newer endpoint.

Nothing is stored: every request brings its whole conversation.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api import responses_events as events
from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.answer import Answer
from loraplex.server.api.body import read
from loraplex.server.api.chat import prepare
from loraplex.server.api.logprobs import chat_logprobs
from loraplex.server.api.reading import Reading
from loraplex.server.api.responses_input import chat_request, restated
from loraplex.server.api.responses_schema import (
    IncompleteDetails,
    InputTokensDetails,
    ModelResponse,
    OutputTokensDetails,
    ResponseError,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextOptions,
)
from loraplex.server.api.schema import ErrorResponse, TextFormat
from loraplex.server.api.stream import Write, event, json_response
from loraplex.server.engine.messages import Finish
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Delta
from loraplex.server.serving import Serving, serving
from loraplex.server.text.tool_format import ToolFormat


async def responses(request: Request) -> Response:
    server = serving(request)
    arrived = time.perf_counter()
    key = key_of(request)
    body = await read(request, ResponsesRequest, server.settings.max_body_bytes)
    with ExitStack() as held:
        name = await find_model(server, key, body.model)
        model = held.enter_context(server.registry.use(name))
        try:
            jobs, tool_format = await prepare(server, model, chat_request(body), arrived)
        except InvalidRequest as error:
            raise restated(error) from None
        answer = Answer(server, jobs, "resp", held.pop_all(), body.timeout)
    sampled = jobs[0].sampling
    response = ModelResponse(
        id=answer.id.replace("-", "_", 1),
        created_at=answer.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=answer.model,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        safety_identifier=body.safety_identifier,
        frequency_penalty=sampled.frequency_penalty,
        presence_penalty=sampled.presence_penalty,
        temperature=sampled.temperature,
        text=TextOptions((body.text and body.text.format) or TextFormat()),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=sampled.top_p,
        usage=None,
        user=body.user,
    )
    telling = _Telling(server, answer, response, tool_format)
    if body.stream:
        return answer.stream(telling.tell, telling.failed, end=b"")
    return await answer.whole(request, telling.whole())


class _Telling:
    """One response as it comes about."""

    def __init__(
        self, server: Serving, answer: Answer, response: ModelResponse, tool_format: ToolFormat | None
    ) -> None:
        self._tokenizer = server.text.tokenizer
        self._answer = answer
        self._response = response
        self._reading = Reading(tool_format)
        self._writer = events.Writer()
        self._finish: Finish = "length"

    async def whole(self) -> Response:
        def take(delta: Delta) -> None:
            self._events(delta)

        await self._answer.run(lambda _: take)
        self._end()
        return json_response(self._response)

    async def tell(self, write: Write) -> None:
        number = self._writer.number
        write(_event(events.Created(sequence_number=number(), response=self._response)), more=True)
        write(_event(events.InProgress(sequence_number=number(), response=self._response)))

        def take(delta: Delta) -> None:
            write(b"".join(map(_event, self._events(delta))), delta.more)

        await self._answer.run(lambda _: take)
        for found in self._end():
            write(_event(found))
        last = events.Completed if self._response.status == "completed" else events.Incomplete
        write(_event(last(sequence_number=number(), response=self._response)))

    def failed(self, error: ErrorResponse) -> bytes:
        """The event that ends a stream with an error."""
        response = replace(
            self._response,
            status="failed",
            error=ResponseError("server_error", error.error.message),
            output=self._writer.items,
        )
        return _event(events.Failed(sequence_number=self._writer.number(), response=response))

    def _events(self, delta: Delta) -> list[events.Event]:
        self._finish = delta.finish or self._finish
        pieces, _ = self._reading.read(delta)
        logprobs = chat_logprobs(self._tokenizer, delta.tokens, delta.logprobs)
        content = logprobs.content if logprobs else []
        found: list[events.Event] = []
        for piece in pieces or ([""] if content else []):
            found += self._writer.write(piece, self._reading, content)
            content = []
        return found

    def _end(self) -> list[events.Event]:
        status: Status = "incomplete" if self._finish == "length" else "completed"
        found = list(self._writer.end(status))
        usage = self._answer.usage()
        self._response = replace(
            self._response,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            output=self._writer.items,
            usage=ResponseUsage(
                usage.prompt_tokens,
                InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
                usage.completion_tokens,
                OutputTokensDetails(),
                usage.total_tokens,
            ),
        )
        return found


def _event(found: events.Event) -> bytes:
    return event(found, str(found.__struct_config__.tag))
