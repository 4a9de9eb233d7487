"""What chat completions and completions share: a request's choices, run together and counted together."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from loraplex.server.api.schema import Generate, Usage
from loraplex.server.api.stream import merge
from loraplex.server.engine.messages import Finish, Sampling
from loraplex.server.errors import InvalidRequest
from loraplex.server.generation import Delta, Job
from loraplex.server.registry import Model
from loraplex.server.serving import Serving

SEEDS = 2**31
"""onnxruntime-genai takes 31 bits."""


class Answer:
    """The choices of one request: admitted together, then streamed or collected. `close` must be called at the end."""

    def __init__(self, serving: Serving, jobs: list[Job], id_prefix: str) -> None:
        """Raises QueueFull."""
        self._serving = serving
        self._jobs = jobs
        self._tickets = serving.admission.enter(jobs[0].model.name, len(jobs))
        self._tokens = 0
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
                self._tokens += delta.tokens
                yield index, delta

    async def collect(self) -> list[tuple[str, Finish]]:
        """Text and finish reason of every choice. Raises NotReady and EngineFailed."""
        texts = [""] * len(self._jobs)
        finishes: list[Finish] = ["length"] * len(self._jobs)
        async with aclosing(self.deltas()) as deltas:
            async for index, delta in deltas:
                texts[index] += delta.text
                if delta.finish:
                    finishes[index] = delta.finish
        return list(zip(texts, finishes, strict=True))

    def usage(self) -> Usage:
        """Tokens so far. A prompt that several choices share counts once."""
        prompt = sum(len(prompt) for prompt in {id(job.prompt): job.prompt for job in self._jobs}.values())
        return Usage(prompt, self._tokens, prompt + self._tokens)

    def close(self) -> None:
        for ticket in self._tickets:
            self._serving.admission.release(ticket)


def sampling(request: Generate, model: Model, choice: int) -> Sampling:
    """How a choice is sampled: the request's word first, then the adapter's, the base's and OpenAI's defaults.

    With a seed, every choice has one of its own that follows from it.
    """
    seed = secrets.randbelow(SEEDS) if request.seed is None else (request.seed + choice) % SEEDS

    def pick(name: str, default: float) -> float:
        for source in (request, *model.sampling):
            if (value := getattr(source, name)) is not None:
                return float(value)
        return default

    return Sampling(
        temperature=pick("temperature", 1.0),
        top_p=pick("top_p", 1.0),
        top_k=max(0, int(pick("top_k", 0))),
        repetition_penalty=pick("repetition_penalty", 1.0),
        seed=seed,
    )


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
