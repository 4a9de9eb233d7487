"""Many clients and a restless operator on one server, for as long as you like; not a part of `make test`.

    python -m tests.soak [--minutes 30] [--clients 32] [--engine batched]

Clients ask for random adapters, streaming or not, and leave some answers before they end. Meanwhile adapters are
loaded, replaced, uploaded, pinned and unloaded. Every whole answer is compared with the one that the same weights gave
alone, or with the guide that it was to follow. At the end the memory, file descriptors and threads that both processes
had in the last third are compared with those of the third before: a process that has warmed up stays as it is, one that
leaks goes on. Ends with 1 if anything was wrong, a status of 500 or more included.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Literal

import httpx
import openai
import psutil
from cyclopts import run
from msgspec import Struct

from tests.checkpoints import make_adapter, quiet
from tests.server.bytes_bundle import TEMPLATES, make_bytes_checkpoint
from tests.server.process import ServerProcess, serving

SOURCES = {"small": 2, "middle": 8, "large": 16}
"""Rank by name."""
RESTLESS = [f"restless-{number}" for number in range(6)]
PROMPTS = [[seed, seed + 20, seed + 40] for seed in range(10, 34)]
TOKENS = 24
GUIDE = "[0-9]{4}"
WARM_UP = 0.2
"""Of the time, before anybody looks: caches fill up and the allocators take what they will keep."""
ROOM = {"rss": 2**20, "descriptors": 8, "threads": 2}
"""By which a process may have more in the last third than in the middle one, in bytes and numbers: what comes and goes
with requests is never the same."""


class Usage(Struct, frozen=True):
    """What one process holds."""

    rss: int
    descriptors: int
    threads: int


def thirds(values: Sequence[int]) -> tuple[float, float, float]:
    """The mean of each third of at least three values."""
    first, second = len(values) // 3, 2 * len(values) // 3
    return mean(values[:first]), mean(values[first:second]), mean(values[second:])


def grown(what: str, values: Sequence[int]) -> bool:
    """Whether a process has more and more of something, an attribute of Usage."""
    _, middle, last = thirds(values)
    return last > middle + ROOM[what]


class Soak:
    def __init__(self, server: ServerProcess, sources: Path, peft: Path, *, guides: bool) -> None:
        self.server = server
        self.sources = sources
        self.peft = peft
        self.guides = guides
        self.random = random.Random(7)
        self.client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.http = httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False)
        self.alone: dict[tuple[str, int], str] = {}
        self.seen: Counter[str] = Counter()
        self.problems: list[str] = []

    async def ask(self, model: str, prompt: int) -> str:
        answer = await self.client.completions.create(
            model=model, prompt=PROMPTS[prompt], temperature=0, max_tokens=TOKENS
        )
        return answer.choices[0].text

    async def record(self) -> None:
        """Every answer, given alone."""
        for model in ("tiny", *SOURCES):
            for prompt in range(len(PROMPTS)):
                self.alone[model, prompt] = await self.ask(model, prompt)

    async def stream(self, model: str, prompt: int) -> str | None:
        """None where it was left half-read."""
        leave = self.random.random() < 0.2
        text = ""
        async with await self.client.completions.create(
            model=model, prompt=PROMPTS[prompt], temperature=0, max_tokens=TOKENS, stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].text
                if leave and self.random.random() < 0.2:
                    return None
        return text

    async def leave(self, model: str, prompt: int) -> None:
        """Ask for a whole answer, and go before it is there, if it is not."""
        asking = asyncio.create_task(self.ask(model, prompt))
        await asyncio.wait([asking], timeout=self.random.random() * 0.1)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.result()

    async def guided(self, model: str, prompt: int) -> None:
        answer = await self.client.completions.create(
            model=model, prompt=PROMPTS[prompt], max_tokens=TOKENS, extra_body={"guided_regex": GUIDE}
        )
        if not re.fullmatch(GUIDE, answer.choices[0].text):
            self.problems.append(f"{model}, guided: {answer.choices[0].text!r}")

    async def once(self, model: str, prompt: int) -> None:
        action = self.random.random()
        if action < 0.1:
            await self.leave(model, prompt)
            self.seen["left"] += 1
            return
        if action < 0.2 and self.guides:
            await self.guided(model, prompt)
            self.seen["guided"] += 1
            return
        text = await (self.stream if action < 0.6 else self.ask)(model, prompt)
        self.seen["left" if text is None else "answered"] += 1
        right = {self.alone[each, prompt] for each in (SOURCES if model in RESTLESS else (model,))}
        if text is not None and text not in right:
            self.problems.append(f"{model}, prompt {prompt}: {text!r}")

    async def user(self, until: float) -> None:
        while time.monotonic() < until:
            model = self.random.choice(["tiny", *SOURCES, *RESTLESS])
            prompt = self.random.randrange(len(PROMPTS))
            try:
                await self.once(model, prompt)
            except openai.NotFoundError:
                self.seen["not there"] += 1
                if model not in RESTLESS:
                    self.problems.append(f"{model} was not found")
            except openai.APIError as error:
                self.problems.append(f"{model}: {error!r}")

    async def operator(self, until: float) -> None:
        while time.monotonic() < until:
            name = self.random.choice(RESTLESS)
            source = self.random.choice(list(SOURCES))
            action = self.random.random()
            if action < 0.55:
                response = await self.http.put(f"/v1/adapters/{name}", json={"path": source})
                accepted = {200, 201, 409}
            elif action < 0.6:
                response = await self.http.patch(f"/v1/adapters/{name}", json={"pinned": self.random.random() < 0.5})
                accepted = {200, 404}
            elif action < 0.65:
                files = [("file", (file.name, file.read_bytes())) for file in (self.peft / source).iterdir()]
                files = [file for file in files if file[1][0].startswith("adapter_")]
                response = await self.http.put(f"/v1/adapters/{name}", files=files)
                accepted = {200, 201, 409}
            else:
                response = await self.http.delete(f"/v1/adapters/{name}")
                accepted = {200, 404, 409}
            self.seen[f"{response.request.method} {response.status_code}"] += 1
            if response.status_code not in accepted:
                self.problems.append(f"{response.request.method} {name}: {response.status_code} {response.text}")
            await asyncio.sleep(self.random.random() * 0.4)

    def usage(self) -> dict[str, Usage]:
        processes = {"server": psutil.Process(self.server.process.pid), "engine": self.server.engine()}
        return {
            name: Usage(process.memory_info().rss, process.num_fds(), process.num_threads())
            for name, process in processes.items()
        }

    async def watch(self, begin: float, until: float) -> list[dict[str, Usage]]:
        """A look every two seconds, more often where there would be few of them."""
        await asyncio.sleep(WARM_UP * (until - begin))
        pause = min(2.0, (until - begin) / 60)
        looks = []
        while time.monotonic() < until:
            looks.append(await asyncio.to_thread(self.usage))
            await asyncio.sleep(pause)
        return looks

    async def run(self, seconds: float, clients: int) -> None:
        await self.record()
        begin = time.monotonic()
        until = begin + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self.user(until))
            for _ in range(2):
                group.create_task(self.operator(until))
            watching = group.create_task(self.watch(begin, until))
        self._compare(watching.result())
        if self.server.metric("loraplex_engine_restarts_total"):
            self.problems.append("the engine was started again")
        await self.client.close()
        await self.http.aclose()

    def _compare(self, looks: list[dict[str, Usage]]) -> None:
        for process in ("server", "engine"):
            for what in ROOM:
                values = [getattr(look[process], what) for look in looks]
                means = " -> ".join(f"{each:.0f}" for each in thirds(values))
                print(f"{process} {what}: {means}, at most {max(values)}")
                if grown(what, values):
                    self.problems.append(f"{process}: {what} keeps growing: {means}")


def soak(
    *, minutes: float = 30, clients: int = 32, engine: Literal["batched", "generator", "routed"] = "batched"
) -> None:
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        with quiet():
            _build(work)
        log = work / "log"
        flags: tuple[Any, ...] = ("--dev", "--adapter-dir", str(work / "sources"), "--engine", engine)
        flags += ("--state-dir", str(work / "state"))
        with serving(work / "bundle", log, *flags) as server:
            found = Soak(server, work / "sources", work / "peft", guides=engine != "routed")
            asyncio.run(found.run(minutes * 60, clients))
        print(dict(found.seen))
        _, traceback, after = log.read_text().partition("Traceback")
        if traceback:
            found.problems.append(f"the log has a traceback{after[:3000]}")
    for problem in found.problems[:50]:
        print(problem, file=sys.stderr)
    print(f"{len(found.problems)} problems")
    sys.exit(bool(found.problems))


def _build(work: Path) -> None:
    from loraplex.build.assembly import build_bundle

    checkpoint = make_bytes_checkpoint(work / "checkpoint", TEMPLATES["hermes"])
    adapters = {
        name: make_adapter(checkpoint, work / "peft" / name, rank=rank, alpha=2 * rank, seed=rank)
        for name, rank in SOURCES.items()
    }
    build_bundle(checkpoint, adapters, work / "bundle", name="tiny", precision="float32")
    shutil.copytree(work / "bundle" / "adapters", work / "sources")


if __name__ == "__main__":
    run(soak)
