"""What chat completions and completions share: a request's choices, run together and counted together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.schema import ErrorResponse, Generate, PromptTokensDetails, Usage
from loraplex.server.api.stream import DONE, EventStream, event, events, merge, unless_disconnected
from loraplex.server.engine.messages import Finish, Logprobs
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Delta, Job
from loraplex.server.record import RequestRecord, current
from loraplex.server.serving import Serving

Reporting = Literal["never", "last", "each"]
"""Whether a last chunk without choices has the usage, or every chunk besides."""


class Choice(Struct):
    """One whole answer."""

    text: str = ""
    tokens: list[int] = []
    logprobs: list[Logprobs] = []
    offsets: list[int] = []
    """Length of the text when each token came."""
    finish: Finish = "length"
    prompt_logprobs: list[Logprobs] | None = None


class Answer:
    """The choices of one request: admitted together, then either streamed or answered whole."""

    def __init__(
        self, serving: Serving, jobs: list[Job], id_prefix: str, held: ExitStack, timeout: float | None = None
    ) -> None:
        """`held` is closed when the answer is; `timeout` is the request's own. Raises QueueFull and RateLimited."""
        self._serving = serving
        self._jobs = jobs
        self._held = held
        self._record = current() or RequestRecord("")
        self.model = jobs[0].model.name
        key = self._record.key
        try:
            self._record.check_prompt(self._prompt_tokens())
            self._tickets = serving.admission.enter(
                self.model,
                [len(job.prompt) for job in jobs],
                key=key.name if key else "",
                terms=jobs[0].model.options.terms,
            )
        except BaseException:
            held.close()
            raise
        self._record.take_prompt(self.model, self._prompt_tokens())
        self._deadline = _deadline(jobs[0].arrived, timeout, serving.settings.request_timeout)
        self._tokens = 0
        self._cached = 0
        self._more = False
        """The next delta is there already, or the end."""
        self.id = f"{id_prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.fingerprint = serving.fingerprint

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Every delta with the index of its choice. Raises NotReady, EngineFailed and DeadlineExceeded."""
        run = self._serving.generation.run
        choices = [run(job, ticket, self._deadline) for job, ticket in zip(self._jobs, self._tickets, strict=True)]
        if len(choices) == 1:  # by far the most common, and spared tasks and a queue
            async with aclosing(choices[0]) as only:
                async for delta in only:
                    self._count(delta)
                    self._more = delta.more or delta.finish is not None
                    yield 0, delta
        else:
            async with aclosing(merge(choices)) as merged:
                async for index, delta in merged:
                    self._count(delta)
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
                if delta.prompt_logprobs is not None:
                    choice.prompt_logprobs = delta.prompt_logprobs
        return choices

    def usage(self) -> Usage:
        """Tokens so far. A prompt that several choices share counts once."""
        prompt = self._prompt_tokens()
        # Later choices of one prompt find it cached by the first; that is no saving of the client's.
        cached = PromptTokensDetails(min(self._cached, prompt))
        return Usage(prompt, self._tokens, prompt + self._tokens, cached)

    def chunk_usage(self, wanted: Reporting) -> Usage | UnsetType | None:
        """The usage of a chunk that has choices."""
        if wanted == "each":
            return self.usage()
        return UNSET if wanted == "never" else None

    def stream(
        self,
        chunks: AsyncGenerator[bytes, None],
        failed: Callable[[ErrorResponse], bytes] = event,
        end: bytes = DONE,
    ) -> Response:
        """The response that sends `chunks` of this answer as they come, or the event `failed`, and then `end`."""
        sent = events(chunks, lambda: self._more, failed, end)
        return EventStream(sent, self.close, self._serving.settings.stop_timeout)

    async def whole(self, request: Request, response: Coroutine[Any, Any, Response]) -> Response:
        """The response made of the whole answer; the work ends when the client leaves."""
        try:
            return await unless_disconnected(request, response)
        finally:
            self.close()

    def _count(self, delta: Delta) -> None:
        self._tokens += len(delta.tokens)
        self._cached += delta.cached
        self._record.take_tokens(len(delta.tokens), delta.cached)

    def _prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in {id(job.prompt): job.prompt for job in self._jobs}.values())

    def close(self) -> None:
        for ticket in self._tickets:
            self._serving.admission.release(ticket)
        self._held.close()


def _deadline(arrived: float, *timeouts: float | None) -> float | None:
    """When the first of these times is over, by the event loop's clock."""
    given = [timeout for timeout in timeouts if timeout is not None]
    if not given:
        return None
    return asyncio.get_running_loop().time() + min(given) - (time.perf_counter() - arrived)


def stop_strings(request: Generate) -> list[str]:
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def reporting(request: Generate) -> Reporting:
    """Which chunks of a stream have the usage. Raises InvalidRequest where there is no stream."""
    options = request.stream_options
    if options is None:
        return "never"
    if not request.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "continuous_usage_stats needs include_usage: true", param="stream_options.continuous_usage_stats"
        )
    if options.continuous_usage_stats:
        return "each"
    return "last" if options.include_usage else "never"
