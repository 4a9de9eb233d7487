"""One sequence from its prompt to its last piece of text: waits for a slot, drives the engine, makes text of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from loraplex.server.admission import Admission, Ticket
from loraplex.server.engine.client import EngineClient
from loraplex.server.engine.messages import Finish, Guide, Logprobs, Output, Sampling
from loraplex.server.errors import ContextLengthExceeded, DeadlineExceeded, LoraplexError
from loraplex.server.model import Model
from loraplex.server.text.detokenizer import Detokenizer
from loraplex.server.text.stop import StopStrings
from loraplex.server.text.tokenizer import Text
from loraplex.server.timing import Clock, Clocks


class Job(Struct, frozen=True):
    """One sequence to generate; everything in it is validated."""

    model: Model
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    guide: Guide | None
    stop: list[str]
    arrived: float
    """time.perf_counter() at the arrival of the request."""
    continues_prompt: bool
    """The text goes on where the prompt ends, rather than starting an answer of its own."""
    hidden: frozenset[int] | None = None
    """Tokens without text; None for every special one."""
    include_stop: bool = False
    """What ends the answer is part of its text."""


class Delta(Struct, frozen=True):
    """A piece of an answer. The last one has `finish`; text and tokens may be empty in any."""

    text: str
    tokens: list[int]
    finish: Finish | None = None
    logprobs: list[Logprobs] = []
    """One for each token, where asked for."""
    cached: int = 0
    """Prompt tokens that had not to be computed; in the first piece with tokens."""
    prompt_logprobs: list[Logprobs] | None = None
    """One for each token of the prompt but the first, where asked for; in the first piece with tokens."""
    more: bool = False
    """The next piece follows at once."""


class Generation:
    """Runs jobs."""

    def __init__(self, engine: EngineClient, admission: Admission, text: Text, clocks: Clocks) -> None:
        self._engine = engine
        self._admission = admission
        self._text = text
        self._clocks = clocks

    def count(self) -> None:
        """Count all tokens that came, which are otherwise counted when they are on their way."""
        self._clocks.count()

    async def run(self, job: Job, ticket: Ticket, take: Callable[[Delta], None], deadline: float | None = None) -> None:
        """Give the answer to `take` as it comes; cancelling this cancels the work.

        Releases the ticket as soon as the engine is done. `deadline` is in seconds of the event loop's clock. Raises
        NotReady, EngineFailed, DeadlineExceeded and what `take` does.
        """
        clock = self._clocks.start(job.model.name, job.arrived, len(job.prompt))
        decoding = _Decoding(self._text, job, clock, take)
        ended: Literal["error", "timeout", "cancelled"] = "cancelled"
        timer: asyncio.TimerHandle | None = None
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await ticket.admitted()
                    clock.admitted()
                    await self._engine.ready()
            except TimeoutError:
                raise _late("waited for its turn") from None
            async with self._engine.generate(
                job.prompt,
                adapter=job.model.adapter,
                max_tokens=job.max_tokens,
                sampling=job.sampling,
                guide=job.guide,
                take=decoding.pass_on,
                on_end=lambda: self._admission.release(ticket),
            ) as stream:
                if deadline is not None:
                    loop = asyncio.get_running_loop()
                    timer = loop.call_at(deadline, self._engine.fail, stream, _late("was being answered"))
                await stream.over()
        except LoraplexError as error:
            ended = "timeout" if isinstance(error, DeadlineExceeded) else "error"
            clock.failed(error.code)
            raise
        finally:
            if timer:
                timer.cancel()
            self._admission.release(ticket)
            clock.end(decoding.finish or ended)


class _Decoding:
    """Outputs of the engine to deltas: detokenizes, looks for stop strings, counts."""

    __slots__ = ("_clock", "_detokenizer", "_include_stop", "_stop", "_take", "finish")

    def __init__(self, text: Text, job: Job, clock: Clock, take: Callable[[Delta], None]) -> None:
        before = job.prompt[-8:] if job.continues_prompt else ()
        self._detokenizer = Detokenizer(text.tokenizer, before, job.hidden)
        self._stop = StopStrings(job.stop, include=job.include_stop) if job.stop else None
        self._include_stop = job.include_stop
        self._clock = clock
        self._take = take
        self.finish: Finish | None = None
        """How it ended, once all of it was taken."""

    def pass_on(self, output: Output, more: bool) -> bool:
        """As `engine.stream.Take`."""
        if output.lane is not None:
            self._clock.answered_by(output.lane)
        delta = self._decode(output, more)
        self._clock.tokens(len(delta.tokens), delta.cached)
        self._take(delta)
        self.finish = delta.finish
        return delta.finish is None

    def _decode(self, output: Output, more: bool) -> Delta:
        # The token that ends a sequence is no part of its text, whether the tokenizer calls it special or not.
        ends = output.finish == "stop" and not self._include_stop
        visible = output.tokens[:-1] if ends else output.tokens
        logprobs = output.logprobs or []
        if self._stop is None:
            text = self._detokenizer.decode(visible)
        else:
            text = ""
            for count, token in enumerate(visible, 1):
                text += self._stop.feed(self._detokenizer.add(token))
                if self._stop.stopped:
                    tokens, logprobs = output.tokens[:count], logprobs[:count]
                    return Delta(text, tokens, "stop", logprobs, output.cached, output.prompt_logprobs)
            if output.finish:
                text += self._stop.flush()
        return Delta(text, output.tokens, output.finish, logprobs, output.cached, output.prompt_logprobs, more)


def _late(state: str) -> DeadlineExceeded:
    # Its time is the client's own, or one that all requests share: another try would end the same way.
    return DeadlineExceeded(f"The request's time was over while it {state}", permanent=True)


def token_budget(
    prompt: int, wanted: int | None, default: int, *, context: int, kv_tokens: int | None, param: str
) -> int:
    """How many tokens may be generated after a prompt of `prompt` tokens. Raises ContextLengthExceeded.

    What the client did not ask for is cut to what there is room for, in the context and in the KV cache; what it asked
    for is refused where there is none, here or by the lane that holds the cache (None: that is not known).
    """
    if prompt >= context:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens, but the prompt has {prompt} tokens. "
            "Shorten the prompt",
            param=param,
        )
    if wanted is None:
        if kv_tokens is None:
            return min(default, context - prompt)
        if prompt >= kv_tokens:
            raise ContextLengthExceeded(
                f"The KV cache has memory for {kv_tokens} tokens, but the prompt has {prompt} tokens. "
                "Shorten the prompt",
                param=param,
            )
        return min(default, context - prompt, kv_tokens - prompt)
    if prompt + wanted > context:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens, but {prompt + wanted} were requested: {prompt} "
            f"in the prompt and {wanted} for the answer. Shorten the prompt or lower max_tokens",
            param=param,
        )
    return wanted
