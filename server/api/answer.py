"""What chat completions and completions share: a request's choices, run together and counted together."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.schema import Generate, PromptTokensDetails, Usage
from loraplex.server.api.stream import EventStream, events, merge, unless_disconnected
from loraplex.server.engine.messages import Finish, Logprobs
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Delta, Job
from loraplex.server.serving import Serving


class Choice(Struct):
    """One whole answer."""

    text: str = ""
    tokens: list[int] = []
    logprobs: list[Logprobs] = []
    offsets: list[int] = []
    """Length of the text when each token came."""
    finish: Finish = "length"


class Answer:
    """The choices of one request: admitted together, then either streamed or answered whole."""

    def __init__(self, serving: Serving, jobs: list[Job], id_prefix: str, held: ExitStack) -> None:
        """`held` is closed when the answer is. Raises QueueFull."""
        self._serving = serving
        self._jobs = jobs
        self._held = held
        try:
            self._tickets = serving.admission.enter(jobs[0].model.name, len(jobs))
        except BaseException:
            held.close()
            raise
        self._tokens = 0
        self._cached = 0
        self.id = f"{id_prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = jobs[0].model.name
        self.fingerprint = serving.fingerprint

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Every delta with the index of its choice. Raises NotReady and EngineFailed."""
        run = self._serving.generation.run
        choices = [run(job, ticket) for job, ticket in zip(self._jobs, self._tickets, strict=True)]
        async with aclosing(merge(choices)) as merged:
            async for index, delta in merged:
                self._tokens += len(delta.tokens)
                self._cached += delta.cached
                yield index, delta

    async def collect(self) -> list[Choice]:
        """Every choice, whole. Raises NotReady and EngineFailed."""
        choices = [Choice() for _ in self._jobs]
        async with aclosing(self.deltas()) as deltas:
            async for index, delta in deltas:
                choice = choices[index]
                choice.offsets += [len(choice.text)] * len(delta.tokens)
                choice.text += delta.text
                choice.tokens += delta.tokens
                choice.logprobs += delta.logprobs
                choice.finish = delta.finish or choice.finish
        return choices

    def usage(self) -> Usage:
        """Tokens so far. A prompt that several choices share counts once."""
        prompt = sum(len(prompt) for prompt in {id(job.prompt): job.prompt for job in self._jobs}.values())
        # Later choices of one prompt find it cached by the first; that is no saving of the client's.
        cached = PromptTokensDetails(min(self._cached, prompt))
        return Usage(prompt, self._tokens, prompt + self._tokens, cached)

    def stream(self, chunks: AsyncGenerator[bytes, None]) -> Response:
        """The response that sends `chunks` of this answer as they come."""
        return EventStream(events(chunks), self.close, self._serving.settings.stop_timeout)

    async def whole(self, request: Request, response: Coroutine[Any, Any, Response]) -> Response:
        """The response made of the whole answer; the work ends when the client leaves."""
        try:
            return await unless_disconnected(request, response)
        finally:
            self.close()

    def close(self) -> None:
        for ticket in self._tickets:
            self._serving.admission.release(ticket)
        self._held.close()


def stop_strings(request: Generate) -> list[str]:
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def include_usage(request: Generate) -> bool:
    """Whether a stream ends with a usage chunk. Raises InvalidRequest where there is no stream."""
    if request.stream_options is None:
        return False
    if not request.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return request.stream_options.include_usage
