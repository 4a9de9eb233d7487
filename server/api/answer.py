"""What chat completions and completions share: a request's choices, run together and counted together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.schema import ErrorResponse, Generate, PromptTokensDetails, Usage
from loraplex.server.api.stream import DONE, EventStream, Write, event, together, unless_disconnected
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
        self.id = f"{id_prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.fingerprint = serving.fingerprint

    async def run(self, takes: Callable[[int], Callable[[Delta], None]]) -> None:
        """Give every delta as it comes to what `takes` gives for the index of its choice.

        Raises NotReady, EngineFailed, DeadlineExceeded and what taking does.
        """
        run = self._serving.generation.run
        choices = [
            run(job, ticket, takes(index), self._deadline)
            for index, (job, ticket) in enumerate(zip(self._jobs, self._tickets, strict=True))
        ]
        if len(choices) == 1:  # by far the most common, and spared a task
            await choices[0]
        else:
            await together(choices)

    async def collect(self) -> list[Choice]:
        """Every choice, whole. Raises NotReady and EngineFailed."""
        choices = [Choice() for _ in self._jobs]

        def take(index: int, delta: Delta) -> None:
            choice = choices[index]
            choice.offsets += [len(choice.text)] * len(delta.tokens)
            choice.text += delta.text
            choice.tokens += delta.tokens
            choice.logprobs += delta.logprobs
            choice.finish = delta.finish or choice.finish
            if delta.prompt_logprobs is not None:
                choice.prompt_logprobs = delta.prompt_logprobs

        await self.run(lambda index: partial(take, index))
        return choices

    def usage(self) -> Usage:
        """Tokens so far. A prompt that several choices share counts once."""
        self._serving.generation.count()
        prompt = self._prompt_tokens()
        # Later choices of one prompt find it cached by the first; that is no saving of the client's.
        cached = PromptTokensDetails(min(self._record.cached_tokens, prompt))
        generated = self._record.generated_tokens
        return Usage(prompt, generated, prompt + generated, cached)

    def chunk_usage(self, wanted: Reporting) -> Usage | UnsetType | None:
        """The usage of a chunk that has choices."""
        if wanted == "each":
            return self.usage()
        return UNSET if wanted == "never" else None

    def stream(
        self,
        tell: Callable[[Write], Coroutine[Any, Any, None]],
        failed: Callable[[ErrorResponse], bytes] = event,
        end: bytes = DONE,
    ) -> Response:
        """The response that sends what `tell` writes of this answer, or the event `failed`, and then `end`."""
        return EventStream(tell, failed, end, self._serving.writes, self.close)

    async def whole(self, request: Request, response: Coroutine[Any, Any, Response]) -> Response:
        """The response made of the whole answer; the work ends when the client leaves."""
        try:
            return await unless_disconnected(request, response)
        finally:
            self.close()

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
