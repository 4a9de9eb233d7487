"""The same requests through HTTP: a server process and clients in processes of their own.

    python -m loraplex.bench.routed.http URL --streams 16 --adapters a0,a1

is one such client: it sends that many streaming requests at once and prints when their tokens came, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from cyclopts import App

from loraplex.bench.routed.load import Result

CLIENTS = 4
"""Processes that share the streams: one would be busier than the server."""
START = 240.0
"""Seconds a server may take to be ready."""

app = App(help=__doc__)


@contextmanager
def server(bundle: Path, log: Path, *flags: str) -> Iterator[str]:
    """`loraplex serve` on a free port; its URL once it is ready."""
    command = [sys.executable, "-m", "loraplex.server", "serve", str(bundle), "--port", "0", *flags]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START
        while "ready on " not in (text := log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{text}")
            time.sleep(0.1)
        # CUDA graphs are captured while nobody asks for anything.
        while "CUDA graphs captured" not in log.read_text() and "cuda" in flags:
            if time.monotonic() > deadline:
                raise RuntimeError("the server does not come to the end of capturing CUDA graphs")
            time.sleep(0.1)
        yield text.partition("ready on ")[2].partition(";")[0]
    finally:
        process.terminate()
        process.wait(60)


def wave(
    url: str, streams: int, adapters: Sequence[str], *, prompt: int = 128, output: int = 128, seed: int = 0
) -> Result:
    """That many requests at once, adapters in turns, until all have ended. The same seed gives the same prompts."""
    shares = [streams // CLIENTS + (index < streams % CLIENTS) for index in range(CLIENTS)]
    clients, first = [], 0
    for share in filter(None, shares):
        turns = ",".join(adapters[(first + index) % len(adapters)] for index in range(share))
        command = [sys.executable, "-m", "loraplex.bench.routed.http", url, "--adapters", turns]
        command += ["--prompt", str(prompt), "--output", str(output), "--seed", str(seed + first)]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        first += share
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("\n")
        client.stdin.flush()
    runs = [run for client in clients for run in json.loads(client.communicate()[0])]
    tokens = sum(run["tokens"] for run in runs)
    if tokens != streams * output:
        raise RuntimeError(f"{tokens} tokens came back instead of {streams * output}")
    start, end = min(run["start"] for run in runs), max(run["times"][-1] for run in runs)
    between = [float(gap) for run in runs for gap in np.diff(run["times"])]
    return Result.of(tokens, end - start, [run["times"][0] - run["start"] for run in runs], between)


@app.default
def main(url: str, *, adapters: str, prompt: int = 128, output: int = 128, seed: int = 0) -> None:
    """One request for each adapter of the list, all at once, when a line comes on standard input."""
    asyncio.run(_requests(url, adapters.split(","), prompt, output, seed))


async def _requests(url: str, adapters: list[str], prompt: int, output: int, seed: int) -> None:
    address = urlsplit(url)
    random = np.random.default_rng(seed)
    connections = []
    for adapter in adapters:
        body = {
            "model": adapter,
            "prompt": random.integers(2, 400, prompt).tolist(),
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connections.append((await asyncio.open_connection(address.hostname, address.port), json.dumps(body).encode()))
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    runs = await asyncio.gather(*(_request(*streams, body) for streams, body in connections))
    print(json.dumps(runs))


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> dict[str, object]:
    head = "POST /v1/completions HTTP/1.1\r\nHost: loraplex\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    start = time.clock_gettime(time.CLOCK_MONOTONIC)
    writer.write(head.encode() + body)
    times: list[float] = []
    tokens = 0
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        if b'"usage":{' in line:
            tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        else:
            times.append(time.clock_gettime(time.CLOCK_MONOTONIC))
    writer.close()
    return {"start": start, "times": times, "tokens": tokens}


if __name__ == "__main__":
    app()
