"""What it takes to bring an adapter in: unload it, load it, ask it, on a server that otherwise rests; and to load
adapters anew, one after the other, while a run goes on.

Peers report none of this. It needs the server's management API: PUT and DELETE /v1/adapters/NAME of ours, or vLLM's
/v1/load_lora_adapter and /v1/unload_lora_adapter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from statistics import median

import aiohttp
import msgspec

from loraplex.bench.errors import OptionsInvalid, ServerFailed
from loraplex.bench.load.client import LONGEST_ERROR, Client
from loraplex.bench.load.driver import Tally
from loraplex.bench.load.options import Cold
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.target import Target
from loraplex.bench.load.workload import Workload
from loraplex.bench.results.result import ChurnLoad, ColdLoad

RESIDENT = 5
"""Requests whose median TTFT is the resident one."""


def paths(given: Sequence[str], flag: str) -> dict[str, str]:
    """By adapter, where the server loads it from. Raises OptionsInvalid."""
    found = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not name or (equals and not path):
            raise OptionsInvalid(f"{flag} {each} is not NAME or NAME=PATH")
        found[name] = path or name
    return found


async def measure_cold(
    client: Client, workload: Workload, prompts: Sequence[Prompt], target: Target, cold: Cold, stop: asyncio.Event
) -> tuple[list[ColdLoad], str]:
    """`--cold-rounds` measurements of each adapter, fewer where `stop` is set between two, and why they end early where
    an adapter cannot be loaded, unloaded or asked: the run before them counts all the same. Every request has a prompt
    of its own, as far as there are enough.
    """
    loads: list[ColdLoad] = []
    questions = cycle(prompts)
    async with _managing(target, cold) as management:
        for number in range(cold.cold_rounds):
            for name, path in paths(cold.cold, "--cold").items():
                if stop.is_set():
                    return loads, ""
                try:
                    if not number:
                        await management.try_load(name, path)
                    await management.unload(name)
                    seconds = await management.load(name, path)
                    first = await _ttft(client, workload, questions, name)
                    resident = [await _ttft(client, workload, questions, name) for _ in range(RESIDENT)]
                except ServerFailed as failure:
                    return loads, failure.message
                loads.append(ColdLoad(name, seconds, first * 1000, median(resident) * 1000))
    return loads, ""


@asynccontextmanager
async def churning(target: Target, cold: Cold, tally: Tally) -> AsyncIterator[list[ChurnLoad]]:
    """Load the adapters of --churn anew, one each interval, while the block runs; yields a list that gets each load.

    Ours replaces an adapter while requests run on it; of vLLM, it is unloaded first.
    """
    loads: list[ChurnLoad] = []
    if not cold.churn:
        yield loads
        return
    async with _managing(target, cold) as management:
        task = asyncio.create_task(_churn(management, cold, tally, loads))
        try:
            yield loads
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _churn(management: _Management, cold: Cold, tally: Tally, loads: list[ChurnLoad]) -> None:
    for number, (name, path) in enumerate(cycle(paths(cold.churn, "--churn").items()), 1):
        due = tally.began + number * cold.churn_interval
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        start, error = time.perf_counter(), ""
        try:
            await management.replace(name, path)
        except ServerFailed as failure:
            error = failure.message
        loads.append(ChurnLoad(name, start - tally.began, time.perf_counter() - start, error))


async def _ttft(client: Client, workload: Workload, questions: Iterator[Prompt], model: str) -> float:
    answer = await client.ask(model, workload.body(next(questions), model), time.perf_counter())
    if answer.error_kind is not None:
        raise ServerFailed(f"{model} does not answer: {answer.error_kind}: {answer.error}")
    return answer.ttft


class _Management:
    """Loads and unloads adapters."""

    def __init__(self, session: aiohttp.ClientSession, url: str, *, vllm: bool) -> None:
        self._session = session
        self._url = url
        self._vllm = vllm

    async def load(self, name: str, path: str) -> float:
        """Seconds that it took."""
        if self._vllm:
            return await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        return await self._call("PUT", f"/v1/adapters/{name}", {"path": path})

    async def try_load(self, name: str, path: str) -> None:
        """Where a load replaces what is there: one that fails now takes no adapter away, as it would after `unload`."""
        if not self._vllm:
            await self.load(name, path)

    async def replace(self, name: str, path: str) -> None:
        """Load one that is loaded already."""
        if self._vllm:
            await self.unload(name)
        await self.load(name, path)

    async def unload(self, name: str) -> None:
        """Of an adapter that is not loaded too."""
        if self._vllm:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, missing=True)
        else:
            await self._call("DELETE", f"/v1/adapters/{name}", None, missing=True)

    async def _call(self, method: str, path: str, body: dict[str, str] | None, *, missing: bool = False) -> float:
        """`missing`: the adapter may not be there."""
        start = time.perf_counter()
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self._url + path, data=content) as response:
                answer = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerFailed(f"{method} {path}: {str(error) or type(error).__name__}") from None
        if response.status >= 400 and not (missing and response.status == 404):
            raise ServerFailed(
                f"{method} {path} answered {response.status}: {_message(answer)}; this needs --admin-key, and a server "
                "that may load adapters from there"
            )
        return time.perf_counter() - start


def _message(answer: str) -> str:
    """That of an error as OpenAI's API has it, or what came instead."""
    try:
        told = str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        told = answer.strip()
    return told[:LONGEST_ERROR]


@asynccontextmanager
async def _managing(target: Target, cold: Cold) -> AsyncIterator[_Management]:
    headers = {"content-type": "application/json"} | target.headers
    if cold.admin_key:
        headers["authorization"] = f"Bearer {cold.admin_key}"
    connector = aiohttp.TCPConnector(ssl=not target.insecure)
    timeout = aiohttp.ClientTimeout(total=target.request_timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, trust_env=True) as session:
        yield _Management(session, target.url, vllm=cold.cold_api == "vllm")
