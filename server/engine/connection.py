"""One engine process and the two pipes to it, on the API process's side."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self, cast

from loraplex.server.engine.messages import HEADER, Command, Report, Step, pack, unpack_report

logger = logging.getLogger("loraplex.engine")

ENGINE = (sys.executable, "-m", "loraplex.server.engine.process")
"""The command that starts the engine process."""
STOP_TIMEOUT = 5.0
"""Seconds the engine process gets to end by itself."""


class Connection(asyncio.SubprocessProtocol):
    """Reports are handled where they arrive: a task that waits for each would cost more than most reports do."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._handler: Callable[[Report], None] = self._keep
        self._kept: deque[Report] = deque()
        self._arrival = asyncio.Event()
        """A report was kept, or there will be none."""
        self._silent: asyncio.Future[None] = self._loop.create_future()
        """The process has closed its end of the pipe, by which it is as good as gone."""
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def open(cls, command: Sequence[str]) -> Self:
        """Start a process."""
        _, connection = await asyncio.get_running_loop().subprocess_exec(
            cls,
            *command,
            stderr=None,
            start_new_session=True,  # a terminal's Ctrl-C is for the server, which ends this process
        )
        return connection

    def send(self, command: Command) -> None:
        # Commands are small and the engine's reading thread never waits for a step: no need to await the drain.
        if self._transport and (stdin := self._transport.get_pipe_transport(0)) and not stdin.is_closing():
            cast(asyncio.WriteTransport, stdin).write(pack(command))

    async def receive(self) -> Report | None:
        """Next report; None once the process is gone."""
        while not self._kept:
            if self._silent.done():
                return None
            self._arrival.clear()
            await self._arrival.wait()
        return self._kept.popleft()

    async def hand_to(self, handler: Callable[[Report], None]) -> None:
        """Hand over every report as it comes, until the process is gone."""
        self._handler = handler
        while self._kept:
            handler(self._kept.popleft())
        await asyncio.shield(self._silent)

    async def wait(self) -> int:
        """The exit status, once the process has ended."""
        return await asyncio.shield(self._exited)

    def tell_where(self) -> None:
        """Have the process log where each of its threads is, where the system has a way to ask."""
        if self._transport and sys.platform != "win32":
            with suppress(ProcessLookupError):
                self._transport.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the process without asking it. It counts as gone at once, whatever it has yet to say."""
        self._handler = self._drop
        if self._transport:
            with suppress(ProcessLookupError):
                self._transport.kill()
        self._end()

    async def close(self) -> int | None:
        """Close the pipe, which ends the process; kill it if it does not.

        The exit status; None of a process that cannot be killed, as one in the middle of a driver's call.
        """
        if self._transport is None:
            return None
        if stdin := self._transport.get_pipe_transport(0):
            stdin.close()
        if not await self._has_ended():
            with suppress(ProcessLookupError):
                self._transport.kill()
            if not await self._has_ended():
                logger.critical("the engine process %d cannot be killed", self._transport.get_pid())
        self._transport.close()
        return self._exited.result() if self._exited.done() else None

    async def _has_ended(self) -> bool:
        """Whether the process ends within STOP_TIMEOUT."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.wait()
        return self._exited.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's own are no subclasses

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002
        self._buffer += data
        for report in merged(self._reports()):
            try:
                self._handler(report)
            except Exception:
                logger.exception("a report of the engine cannot be handled")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        if fd == 1:
            self._end()

    def process_exited(self) -> None:
        code = self._transport.get_returncode() if self._transport else None
        if not self._exited.done():
            self._exited.set_result(-1 if code is None else code)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._end()

    def _reports(self) -> list[Report]:
        """What has come whole; the rest stays in the buffer."""
        found = []
        start, size = 0, len(self._buffer)
        while size - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if size - start - HEADER.size < length:
                break
            body = self._buffer[start + HEADER.size : start + HEADER.size + length]
            start += HEADER.size + length
            try:
                found.append(unpack_report(body))
            except Exception:  # or what is in the buffer would be read again with every arrival
                logger.exception("a report of the engine cannot be handled")
        del self._buffer[:start]
        return found

    def _keep(self, report: Report) -> None:
        self._kept.append(report)
        self._arrival.set()

    def _drop(self, report: Report) -> None:
        pass

    def _end(self) -> None:
        if not self._silent.done():
            self._silent.set_result(None)
        self._arrival.set()


def merged(reports: Sequence[Report]) -> list[Report]:
    """Steps that follow each other as one, so that the tokens of a sequence which came together leave together."""
    found: list[Report] = []
    for report in reports:
        if isinstance(report, Step) and found and isinstance(before := found[-1], Step):
            before.outputs.extend(report.outputs)
            found[-1] = Step(before.outputs, report.kv_usage)
        else:
            found.append(report)
    return found
