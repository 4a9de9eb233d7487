"""The batched lane beside llama.cpp's llama-server: the same model, prompts and client, through HTTP, in turn.

    python -m loraplex.bench.peers.model WORK
    python -m loraplex.bench.peers.llamacpp convert WORK LLAMA_CPP LLAMA_QUANTIZE
    python -m loraplex.bench.peers.llamacpp compare WORK LLAMA_SERVER [--rounds 5] [--threads 2]

LLAMA_CPP is llama.cpp's source tree, the other two are its programs. Both servers run all the time, and only one has
work at a time: within a round every case is measured on both, and rounds begin with either in turn. Printed are a
Markdown table of medians over the rounds, and the CPU time of the server that should have been idle.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import runpy
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from cyclopts import App
from msgspec import Struct, json

from loraplex.bench.peers.model import ADAPTERS, SHAPE, SPECIAL

SLOTS = 8
CONTEXT = 8192
CASES: dict[str, list[int | None]] = {
    "base, 1 stream": [None],
    "one adapter, 1 stream": [0],
    "base, 8 streams": [None] * SLOTS,
    "one adapter, 8 streams": [0] * SLOTS,
    "8 adapters, 8 streams": list(range(ADAPTERS)),
}
"""By name, the adapter of each stream; None is the base."""
LOADED, WAITING = 0, 1
"""The adapter that is kept busy, and the one whose first token is waited for."""
LOAD_STREAMS = 4
"""Half of the slots, so that it is not for want of one that the other adapter waits."""

app = App(help=__doc__)


class Answer(Struct, frozen=True):
    first_token: float
    """Seconds from the request, as are the others."""
    inter_token: float
    """The mean of this answer."""
    tokens: int


class Result(Struct, frozen=True):
    tokens_per_second: float
    first_token: float
    inter_token: float
    """The last two are medians over the streams."""


class Starvation(Struct, frozen=True):
    unloaded: float
    loaded: float


class Server:
    """One of the two: how it is asked, and what it costs."""

    def __init__(self, name: str, process: subprocess.Popen[str], url: str) -> None:
        self.name = name
        self.url = url
        self._process = psutil.Process(process.pid)

    def body(self, adapter: int | None) -> dict[str, Any]:
        """What only this server understands."""
        return {"model": "base" if adapter is None else str(adapter)}

    def cpu_seconds(self) -> float:
        family = [self._process, *self._process.children(recursive=True)]
        return sum(times.user + times.system for times in (each.cpu_times() for each in family))


class LlamaServer(Server):
    def body(self, adapter: int | None) -> dict[str, Any]:
        # Left out, all adapters would apply at once.
        return {"lora": [{"id": index, "scale": float(index == adapter)} for index in range(ADAPTERS)]}


class Prompts:
    """Random ids, never the same twice, so that no cache has anything of them; the same for both servers."""

    def __init__(self, seed: int, length: int, answer: int) -> None:
        self._random = random.Random(seed)
        self._length = length
        self.answer = answer

    def __next__(self) -> list[int]:
        return self._random.choices(range(len(SPECIAL), int(SHAPE["vocab_size"])), k=self._length)


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    # llama-server drops connections that were idle: every request gets one of its own, on both sides.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        yield client


async def ask(server: Server, client: httpx.AsyncClient, adapter: int | None, prompt: list[int], count: int) -> Answer:
    body = server.body(adapter) | {
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    first, last, usage = 0.0, 0.0, None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.is_error:
            raise RuntimeError(f"{server.name}: {response.status_code} {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.decode(line.removeprefix("data: "))
            if chunk.get("choices") and chunk["choices"][0]["text"]:
                last = time.perf_counter() - start
                first = first or last
            usage = chunk.get("usage") or usage
    assert usage is not None, f"{server.name} sent no usage"
    tokens = usage["completion_tokens"]
    assert (usage["prompt_tokens"], tokens) == (len(prompt), count), f"{server.name}: {usage}"
    return Answer(first, (last - first) / (count - 1), tokens)


async def throughput(server: Server, adapters: list[int | None], prompts: Prompts) -> Result:
    """All streams begin together, one request each."""
    async with connect(server) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(ask(server, client, adapter, next(prompts), prompts.answer) for adapter in adapters)
        )
        seconds = time.perf_counter() - start
    return Result(
        sum(answer.tokens for answer in answers) / seconds,
        median(answer.first_token for answer in answers),
        median(answer.inter_token for answer in answers),
    )


async def starvation(server: Server, prompts: Prompts, seconds: float) -> Starvation:
    """The first token of one adapter on an idle server, and while others' requests for another never cease."""
    async with connect(server) as client:
        unloaded = await ask(server, client, WAITING, next(prompts), prompts.answer)
        end = time.perf_counter() + seconds

        async def stream() -> None:
            while time.perf_counter() < end:
                await ask(server, client, LOADED, next(prompts), prompts.answer)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(LOAD_STREAMS):
                tasks.create_task(stream())
            await asyncio.sleep(seconds / 4)
            loaded = await ask(server, client, WAITING, next(prompts), prompts.answer)
    return Starvation(unloaded.first_token, loaded.first_token)


@contextmanager
def loraplex(work: Path, threads: int, log: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "loraplex.server", "serve", str(work / "bundle"), "--engine", "batched"]
    command += ["--port", str(port), "--threads", str(threads)]
    with started(command, port, log) as process:
        yield Server("loraplex", process, f"http://127.0.0.1:{port}")


@contextmanager
def llama_server(work: Path, program: Path, threads: int, log: Path) -> Iterator[Server]:
    port = free_port()
    adapters = ",".join(str(work / "gguf" / f"{index}.gguf") for index in range(ADAPTERS))
    command = [str(program), "-m", str(work / "gguf" / "q4_0.gguf"), "-t", str(threads), "-np", str(SLOTS)]
    command += ["-c", str(CONTEXT), "--lora", adapters, "--port", str(port)]
    with started(command, port, log) as process:
        yield LlamaServer("llama-server", process, f"http://127.0.0.1:{port}")


@contextmanager
def started(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that answers GET /health with 200."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@app.command
def convert(work: Path, llama_cpp: Path, llama_quantize: Path, /) -> None:
    """Write WORK/gguf/q4_0.gguf and the adapters 0.gguf to 7.gguf with llama.cpp's own scripts."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    # The scripts know tokenizers by their hash, and ours is home-made: its ids are sent, only its texts come back.
    importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    folder = work / "gguf"
    folder.mkdir(exist_ok=True)

    def script(name: str, *arguments: object) -> None:
        path = str(llama_cpp / name)
        sys.argv = [path, *map(str, arguments)]
        runpy.run_path(path, run_name="__main__")

    half = folder / "f16.gguf"
    script("convert_hf_to_gguf.py", work / "checkpoint", "--outfile", half, "--outtype", "f16")
    for index in range(ADAPTERS):
        target, adapter = folder / f"{index}.gguf", work / "adapters" / str(index)
        script(
            "convert_lora_to_gguf.py", adapter, "--base", work / "checkpoint", "--outfile", target, "--outtype", "f16"
        )
    subprocess.run([str(llama_quantize), str(half), str(folder / "q4_0.gguf"), "Q4_0", "2"], check=True)
    half.unlink()


@app.command
def compare(
    work: Path,
    llama_server_program: Path,
    /,
    *,
    rounds: int = 5,
    threads: int = 2,
    prompt: int = 64,
    answer: int = 48,
    load_seconds: float = 20,
) -> None:
    """Measure both and print the table."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    waited: dict[str, list[Starvation]] = defaultdict(list)
    idle: list[float] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(loraplex(work, threads, work / "loraplex.log")),
            stack.enter_context(llama_server(work, llama_server_program, threads, work / "llama-server.log")),
        ]
        for server in servers:  # warms up whatever any case needs
            asyncio.run(throughput(server, list(range(ADAPTERS)), Prompts(-1, prompt, answer)))
        for round_ in range(1, rounds + 1):
            for number, (case, adapters) in enumerate(CASES.items()):
                for server in servers:
                    prompts = Prompts(round_ * 100 + number, prompt, answer)
                    with idling(servers, server, idle):
                        found[case, server.name].append(asyncio.run(throughput(server, adapters, prompts)))
            for server in servers:
                prompts = Prompts(round_ * 100 + len(CASES), prompt, answer)
                with idling(servers, server, idle):
                    waited[server.name].append(asyncio.run(starvation(server, prompts, load_seconds)))
            servers.reverse()
            print(f"Round {round_} of {rounds}:\n\n{table(found, waited)}\n")
            print(f"The idle server took at most {max(idle):.3f} of a core.\n", flush=True)


@contextmanager
def idling(servers: list[Server], busy: Server, found: list[float]) -> Iterator[None]:
    """Append to `found` the cores that the server without work took meanwhile."""
    (other,) = (server for server in servers if server is not busy)
    start, before = time.perf_counter(), other.cpu_seconds()
    yield
    found.append((other.cpu_seconds() - before) / (time.perf_counter() - start))


def table(found: dict[tuple[str, str], list[Result]], waited: dict[str, list[Starvation]]) -> str:
    """Medians over the rounds; of ratios, their range too. Each pair is ours / theirs."""
    lines = ["| | tokens/s | ratio (range) | TTFT, ms | ITL, ms |", "|---|---|---|---|---|"]
    for case in CASES:
        ours, theirs = sides = found[case, "loraplex"], found[case, "llama-server"]
        pairs = zip(ours, theirs, strict=True)
        ratio = spread([mine.tokens_per_second / other.tokens_per_second for mine, other in pairs])
        speed = " / ".join(f"{median(each.tokens_per_second for each in side):.1f}" for side in sides)
        first = " / ".join(f"{median(each.first_token for each in side) * 1000:.0f}" for side in sides)
        inter = " / ".join(f"{median(each.inter_token for each in side) * 1000:.1f}" for side in sides)
        lines.append(f"| {case} | {speed} | {ratio} | {first} | {inter} |")
    lines += [
        "",
        "| first token of another adapter | unloaded, ms | under load, ms | ratio (range) |",
        "|---|---|---|---|",
    ]
    for name, side in waited.items():
        unloaded = median(each.unloaded for each in side) * 1000
        loaded = median(each.loaded for each in side) * 1000
        ratio = spread([each.loaded / each.unloaded for each in side])
        lines.append(f"| {name} | {unloaded:.0f} | {loaded:.0f} | {ratio} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"**{median(values):.2f}** ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    app()
