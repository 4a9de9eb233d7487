"""Requests for one token that are sent beside a run: how long others wait while it goes on.

They are those of `vllm bench serve --probe-request-rate` (`probe_loop` in vllm/benchmarks/serve.py): one after another,
whatever --max-concurrency says, for the model that --model names or the first that the server lists. Where the run asks
adapters, they ask the base, or one that is named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np

from loraplex.bench.load.client import Client
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.workload import Workload
from loraplex.bench.results.result import Probes, Request

QUESTION = Prompt(content="Hi", tokens=1, output_tokens=1)


@asynccontextmanager
async def probing(
    client: Client, workload: Workload, model: str, rate: float, stop: asyncio.Event
) -> AsyncIterator[list[Request]]:
    """Send them while the block runs, `1 / rate` seconds after the answer to the last; yields a list that gets each.

    The one that is under way at the end is read to its end, for it may be the one that waited longest, unless `stop` is
    set.
    """
    answers: list[Request] = []
    if not rate:
        yield answers
        return
    body, over = workload.body(QUESTION, model), asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            answers.append(await client.ask(model, body, time.perf_counter()))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 1 / rate)

    tasks = asyncio.create_task(ask()), asyncio.create_task(stop.wait())
    try:
        yield answers
        over.set()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def summarize_probes(answers: Sequence[Request]) -> Probes:
    """Percentiles are interpolated between samples, as numpy does by default."""
    latencies = [each.latency * 1000 for each in answers if each.error_kind is None]
    counts = len(latencies), len(answers) - len(latencies)
    if not latencies:
        return Probes(*counts)
    return Probes(*counts, float(np.median(latencies)), float(np.percentile(latencies, 99)), max(latencies))
