"""The least that a server can do: passes on a constant event for each token of a scripted engine, over bare sockets.

    python -m loraplex.bench.scripted.floor adapters/demo --engine-options="--seconds 0.02"

What `loraplex serve` costs more than this, it spends on being a server.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import msgspec
from cyclopts import App
from msgspec import Struct

from loraplex.bench.load.event_loop import run
from loraplex.bench.scripted.server import engine_command
from loraplex.server.bundle import Bundle
from loraplex.server.engine.messages import (
    HEADER,
    Cancel,
    Output,
    Sampling,
    Started,
    Step,
    Submit,
    pack,
    unpack_report,
)
from loraplex.server.logs import configure
from loraplex.server.serving import engine_start
from loraplex.server.settings import Settings

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef01234567","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"travel","choices":[{"index":0,"delta":{"content":" the"},"finish_reason":null,"logprobs":null}],'
    b'"system_fingerprint":"fp_0123456789ab"}\n\n'
)
"""Of the size that ours have."""
DONE = b"data: [DONE]\n\n"

app = App(help=__doc__)
logger = logging.getLogger("loraplex")


class Asked(Struct):
    """What is read of a request."""

    max_tokens: int
    seed: int


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


CHUNK = chunk(EVENT)


class Floor:
    """Passes on what one engine says."""

    def __init__(self, engine: asyncio.subprocess.Process) -> None:
        assert engine.stdin is not None
        assert engine.stdout is not None
        self._to, self._from = engine.stdin, engine.stdout
        self._clients: dict[int, asyncio.Transport] = {}

    async def run(self) -> None:
        while True:
            (length,) = HEADER.unpack(await self._from.readexactly(HEADER.size))
            match unpack_report(await self._from.readexactly(length)):
                case Step(outputs):
                    for output in outputs:
                        self._pass_on(output)
                case Started():
                    pass
                case report:
                    raise RuntimeError(f"unexpected report from the engine: {report}")

    def submit(self, asked: Asked, client: asyncio.Transport) -> None:
        sequence = len(self._clients) + 1
        self._clients[sequence] = client
        self._to.write(pack(Submit(sequence, None, [1], asked.max_tokens, Sampling(seed=asked.seed))))
        client.write(HEAD)

    def leave(self, client: asyncio.Transport) -> None:
        for sequence, each in self._clients.items():
            if each is client:
                self._to.write(pack(Cancel(sequence)))

    def _pass_on(self, output: Output) -> None:
        client = self._clients[output.sequence]
        for _ in output.tokens:
            client.write(CHUNK)
        if output.finish:
            client.write(chunk(DONE) + b"0\r\n\r\n")


class Connection(asyncio.Protocol):
    """One client's, with one request."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._read = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclasses

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._read += data
        _, blank, body = self._read.partition(b"\r\n\r\n")
        if blank and body.endswith(b"}"):
            self._floor.submit(msgspec.json.decode(body, type=Asked), self._transport)
            self._read = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        assert self._transport is not None
        self._floor.leave(self._transport)


@app.default
def serve(bundle: Path, /, *, engine_options: str = "") -> None:
    """Pass on what a scripted engine says until the process is ended.

    Parameters
    ----------
    bundle
        Of the server that this is compared with.
    engine_options
        Of the scripted engine, in one string.
    """
    configure("info", "console")
    run(_serve(Bundle.open(bundle), engine_options))


async def _serve(bundle: Bundle, engine_options: str) -> None:
    engine = await asyncio.create_subprocess_exec(
        *engine_command(engine_options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    floor = Floor(engine)
    assert engine.stdin is not None
    engine.stdin.write(pack(engine_start(Settings(), bundle)))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(floor), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    logger.info("ready on http://%s:%d;", host, port)
    await floor.run()


if __name__ == "__main__":
    app()
