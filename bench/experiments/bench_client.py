"""What the client of `bench serve` can take: chunks a second, and time of a core for each.

    python -m loraplex.bench.experiments.bench_client [--streams 16 64 128] [--rate 5000] [--chunks 400]

A server in a process of its own sends every stream chunks of one small token at an even pace, --rate a second over all
streams, with no HTTP library in its way. A rate above what the client can take shows where it ends: the rate that
came, and the share of a core. Five rounds each, medians.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from statistics import median
from typing import Annotated

import msgspec
import uvloop
from cyclopts import App, Parameter

from loraplex.bench.load.client import opened
from loraplex.bench.load.driver import Measured, Tally, drive
from loraplex.bench.load.workload import Planned
from loraplex.bench.machine import processor

CHUNK = {
    "id": "cmpl-0123456789abcdef",
    "object": "text_completion",
    "created": 1700000000,
    "model": "travel",
    "choices": [{"index": 0, "text": " word", "finish_reason": None, "logprobs": None}],
    "usage": None,
    "system_fingerprint": "fp_0123456789",
}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

app = App(help=__doc__)


def framed(event: bytes) -> bytes:
    """One event as one chunk of the transfer encoding, as uvicorn sends it."""
    return b"%x\r\n%b\r\n" % (len(event) + 8, b"data: " + event + b"\n\n")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers requests of a connection: the body says how many chunks, and the seconds between them."""
    content = framed(msgspec.json.encode(CHUNK))
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None
            body = msgspec.json.decode(await reader.readexactly(int(length[1])))
            writer.write(HEAD)
            loop = asyncio.get_running_loop()
            begin = loop.time()
            for index in range(body["chunks"]):
                await asyncio.sleep(begin + (index + body["phase"]) * body["interval"] - loop.time())
                writer.write(content)
            writer.write(framed(b"[DONE]") + b"0\r\n\r\n")
    except asyncio.IncompleteReadError:
        writer.close()


@app.command
def server() -> None:
    """The server; prints its port."""

    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            print(listener.getsockname()[1], flush=True)
            await (await asyncio.start_server(answer, sock=listener)).serve_forever()

    uvloop.run(serve())


async def measure(port: int, streams: int, rate: float, chunks: int) -> Measured:
    plan = [
        Planned(
            at=0.0,
            model="travel",
            body=msgspec.json.encode(
                {"chunks": chunks, "interval": streams / rate, "phase": index / streams, "prompt": "x" * 500}
            ),
            input_tokens=0,
        )
        for index in range(streams)
    ]
    async with opened(f"http://127.0.0.1:{port}/v1/completions", {}, 600, insecure=False) as client:
        return await drive(client, plan, None, Tally())


@app.default
def main(
    *,
    streams: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (16, 64, 128),
    rate: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (5000, 100_000),
    chunks: int = 400,
    rounds: int = 5,
) -> None:
    """Print a Markdown table."""
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, "server"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        print("| streams | chunks/s sent | chunks/s read | share of a core | µs of a core per chunk |")
        print("|---|---|---|---|---|")
        for wanted in rate:
            for count in streams:
                found = [uvloop.run(measure(port, count, wanted, chunks)) for _ in range(rounds)]
                costs = [each.cost for each in found]
                failed = sum(request.error_kind is not None for each in found for request in each.requests)
                assert not failed, f"{failed} requests failed"
                assert all(cost.chunks == count * chunks for cost in costs)
                print(
                    f"| {count} | {wanted:.0f} | {median(cost.chunks_per_second for cost in costs):.0f} "
                    f"| {median(cost.core_share for cost in costs):.0%} "
                    f"| {median(cost.cpu_seconds / cost.chunks for cost in costs) * 1e6:.1f} |",
                    flush=True,
                )
        print(f"\n{processor()}; medians of {rounds} rounds.")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    app()
