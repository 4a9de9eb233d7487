"""A relay between clients and a server that notes when each chunk with a token passed.

Every client's intervals can so be compared with those that the server really sent it. The relay takes each client's
time alike: what it adds is between the client and the server's log, not in the intervals.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import msgspec

from loraplex.bench.errors import BenchFailed
from loraplex.bench.load.stream import Answer

READ = 1 << 16
"""Bytes at once."""


class Relay:
    """Passes on what clients and the server say; `url` is what clients are given."""

    def __init__(self, port: int) -> None:
        """`port` is the server's, on loopback."""
        self.url = ""
        self._port = port
        self._answers: list[Answer] = []
        self._broken = ""
        self._connections: set[asyncio.Task[None]] = set()
        """Nothing else holds them once a client has left."""

    def intervals(self) -> list[float]:
        """Seconds from one chunk with a token to the next, of all answers since the last call.

        Raises BenchFailed where an answer was not what the API says.
        """
        answers, self._answers = self._answers, []
        if broken := self._broken:
            self._broken = ""
            raise BenchFailed(f"a chunk that passed the relay is not what the API says: {broken}")
        return [later - earlier for answer in answers for earlier, later in pairwise(answer.times)]

    async def serve(self, stop: asyncio.Event, ready: threading.Event) -> None:
        """Until `stop` is set."""

        def connected(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(client, to_client))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        for each in self._connections:
            each.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
            current = Answer()

            async def ask() -> None:
                nonlocal current
                while data := await client.read(READ):
                    if not current.times or current.done:  # else the rest of a question
                        current = Answer()
                        self._answers.append(current)
                    to_server.write(data)
                to_server.close()

            async def answer() -> None:
                while data := await server.read(READ):
                    now = time.perf_counter()
                    to_client.write(data)
                    try:
                        current.feed(data, now)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        self._broken = str(error)

            asking = asyncio.create_task(ask())
            try:
                await answer()
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                to_server.close()
        to_client.close()


@contextmanager
def relayed(port: int) -> Iterator[Relay]:
    """A relay in a thread of its own, to the server at this port of loopback."""
    relay, ready = Relay(port), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(relay.serve(stop, ready),))
    thread.start()
    try:
        ready.wait()
        yield relay
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
