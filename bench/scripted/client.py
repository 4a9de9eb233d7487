"""A client that costs little: sends streaming requests at once and notes when each event came.

    python -m loraplex.bench.scripted.client URL --streams 128 --tokens 1024 --arrivals arrivals.npy

It writes `arrivals`, float64 [streams, tokens], and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np
from cyclopts import App
from msgspec import Struct
from numpy.typing import NDArray

from loraplex.bench.load.event_loop import run

Endpoint = Literal["chat", "completions"]

PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
LAST = b"0\r\n\r\n"
"""The end of a chunked body (RFC 9112, 7.1)."""

app = App(help=__doc__)


class Told(Struct, frozen=True):
    """What one client tells of its run."""

    started: float
    """time.perf_counter() of the first request."""
    ended: float
    """And of the last event."""
    cpu_seconds: float
    reads: int
    """How many pieces the events came in."""
    texts: list[str]
    """Different answers, each once."""


class Receiver(asyncio.Protocol):
    """One request's connection. Events are counted as they come and read when all are there."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self._request = request
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._seam = b""
        self.times: list[float] = []
        """Of each event; what came in one read has one time."""
        self.pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclasses

    def start(self) -> None:
        assert self._transport is not None
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        # JSON has no line feed, and chunks of the body end in CR LF: two line feeds are the end of an event.
        self.times += [now] * (self._seam + data).count(b"\n\n")
        self._seam = data[-1:]
        self.pieces.append(data)
        if data.endswith(LAST) and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def events(self) -> list[bytes]:
        """The data of every event."""
        head, _, body = b"".join(self.pieces).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"the server answered {head[:200]!r} {body[:500]!r}")
        found, at = bytearray(), 0
        while size := int(body[at : (end := body.index(b"\r\n", at))], 16):
            found += body[end + 2 : end + 2 + size]
            at = end + 2 + size + 2
        return [line.removeprefix(b"data: ") for line in bytes(found).split(b"\n\n") if line]


def request(address: str, endpoint: Endpoint, model: str, tokens: int, number: int) -> bytes:
    """One request as it goes out; its seed is its number."""
    fields: dict[str, object] = {"model": model, "max_tokens": tokens, "seed": number, "stream": True}
    if endpoint == "chat":
        fields["messages"] = [{"role": "user", "content": "What should I see in Paris?"}]
    else:
        fields["prompt"] = "What should I see in Paris?"
    body = msgspec.json.encode(fields)
    head = f"POST {PATHS[endpoint]} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def measure(
    url: str, endpoint: Endpoint, models: Sequence[str], streams: int, tokens: int
) -> tuple[Told, NDArray[np.float64]]:
    """Sends the requests once a line comes on standard input; what is told, and the arrivals."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    receivers, ends = [], []
    for number in range(streams):
        sent = request(address.netloc, endpoint, models[number % len(models)], tokens, number)
        ends.append(loop.create_future())
        receiver = Receiver(sent, ends[-1])
        await loop.create_connection(partial(_same, receiver), address.hostname or "127.0.0.1", address.port or 80)
        receivers.append(receiver)
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started, cpu = time.perf_counter(), time.process_time()
    for receiver in receivers:
        receiver.start()
    await asyncio.gather(*ends)
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    arrivals, texts = np.zeros((streams, tokens)), set()
    for number, receiver in enumerate(receivers):
        receiver.close()
        pieces, times = [], []
        for event, came in zip(receiver.events(), receiver.times, strict=True):
            if text := _text(event):
                pieces.append(text)
                times.append(came)
        if len(times) != tokens:
            raise ValueError(f"{len(times)} events with text came in place of {tokens}")
        arrivals[number] = times
        texts.add("".join(pieces))
    reads = sum(len(receiver.pieces) for receiver in receivers)
    return Told(started, ended, cpu, reads, sorted(texts)), arrivals


def _same(receiver: Receiver) -> Receiver:
    return receiver


def _text(event: bytes) -> str:
    if event == b"[DONE]":
        return ""
    chunk = msgspec.json.decode(event)
    if "error" in chunk:
        raise ConnectionError(f"a stream ended with {chunk['error']}")
    choice = chunk["choices"][0]
    return str(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])


@app.default
def main(
    url: str,
    *,
    arrivals: Path,
    endpoint: Endpoint = "chat",
    models: tuple[str, ...],
    streams: int = 128,
    tokens: int = 1024,
) -> None:
    """Send `streams` requests at once for `tokens` tokens each, to `models` in turns."""
    told, times = run(measure(url, endpoint, models, streams, tokens))
    np.save(arrivals, times)
    print(msgspec.json.encode(told).decode())


if __name__ == "__main__":
    app()
