"""The API process's end of the border: starts the engine process, talks to it, and starts it again if it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.messages import (
    HEADER,
    AdapterLoaded,
    AdapterRefused,
    Cancel,
    Command,
    Guide,
    LoadAdapter,
    Output,
    Report,
    Sampling,
    Start,
    Started,
    StartFailed,
    Step,
    Submit,
    pack,
    unpack_report,
)
from loraplex.server.errors import AdapterInvalid, BundleInvalid, EngineFailed, InvalidRequest, NotReady

logger = logging.getLogger("loraplex.engine")

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

MAX_RESTARTS = 5
RESTART_WINDOW = 60.0
"""An engine that dies more than MAX_RESTARTS times within so many seconds is not started again."""
STOP_TIMEOUT = 5.0
"""Seconds the engine process gets to end by itself."""


class Stream:
    """The outputs of one sequence, as they arrive. Iterating ends with the output that says why it ended."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.finished = False
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()

    def push(self, output: Output) -> None:
        self._outputs.put_nowait(output)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """Next output. Raises EngineFailed if the engine could not go on, InvalidRequest if the request is at fault."""
        if self.finished:
            raise StopAsyncIteration
        output = await self._outputs.get()
        self.finished = output.finish is not None or output.error is not None
        if output.error is not None:
            raise InvalidRequest(output.error) if output.refused else EngineFailed(output.error)
        return output


class EngineClient:
    """Use as an async context manager: entering starts the engine, leaving stops it.

    Entering raises BundleInvalid if the base cannot be loaded.
    """

    def __init__(self, start: Start, *, on_restart: Callable[[], None]) -> None:
        self.state: State = "starting"
        self.started: Started | None = None
        self._start = start
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._streams: dict[int, Stream] = {}
        self._sequences = itertools.count(1)
        self._adapters: dict[str, Path] = {}
        self._loading: dict[str, asyncio.Future[AdapterManifest]] = {}
        self._deaths: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.state = "stopped"
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._end_process()
        self._fail_everything("the server is shutting down")

    @property
    def unsupported(self) -> frozenset[str]:
        """Fields of Sampling, and "guide", that the running lane cannot honour."""
        return frozenset(self.started.unsupported if self.started else ())

    async def load_adapter(self, name: str, folder: Path) -> AdapterManifest:
        """Check and load an adapter. Raises AdapterInvalid, NotReady or EngineFailed."""
        await self.ready()
        loading = self._loading[name] = asyncio.get_running_loop().create_future()
        try:
            self._send(LoadAdapter(name, str(folder)))
            manifest: AdapterManifest = await loading
        finally:
            self._loading.pop(name, None)
        self._adapters[name] = folder
        return manifest

    async def ready(self) -> None:
        """Wait until the engine runs. Raises NotReady if it will not."""
        if self.state in ("failed", "stopped"):
            raise NotReady("the engine is down for good: the server's log says why")
        await self._ready.wait()
        if self.state != "ready":
            raise NotReady("the engine is not running")

    @asynccontextmanager
    async def generate(
        self, prompt: list[int], *, adapter: str | None, max_tokens: int, sampling: Sampling, guide: Guide | None
    ) -> AsyncIterator[Stream]:
        """Run one sequence; leaving the context before its end cancels it.

        The prompt's ids must be in range and leave room for max_tokens: the engine checks neither. Raises NotReady.
        """
        await self.ready()
        stream = Stream(next(self._sequences))
        self._streams[stream.sequence] = stream
        try:
            self._send(Submit(stream.sequence, adapter, prompt, max_tokens, sampling, guide))
            yield stream
        finally:
            if self._streams.pop(stream.sequence, None) and not stream.finished and self.state == "ready":
                self._send(Cancel(stream.sequence))

    def _send(self, command: Command) -> None:
        # Commands are small and the engine's reading thread never waits for a step: no need to await the drain.
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(pack(command))

    async def _receive(self) -> Report | None:
        """Next report; None once the engine process is gone."""
        if self._process is None or self._process.stdout is None:
            return None
        try:
            (length,) = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
            return unpack_report(await self._process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _launch(self) -> None:
        """Start the process and load the base and every adapter known. Raises BundleInvalid."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loraplex.server.engine.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._send(self._start)
        report = await self._receive()
        match report:
            case Started():
                self.started = report
            case StartFailed(message):
                await self._end_process()
                raise BundleInvalid(message)
            case _:
                code = await self._process.wait()
                raise BundleInvalid(f"the engine process ended with status {code} while it loaded the base")
        for name, folder in self._adapters.items():
            self._send(LoadAdapter(name, str(folder)))
        self.state = "ready"
        self._ready.set()

    async def _supervise(self) -> None:
        """Hand reports on until the engine dies; start it again unless it dies all the time."""
        while True:
            while (report := await self._receive()) is not None:
                self._dispatch(report)
            self._ready.clear()
            self.state = "restarting"
            code = await self._process.wait() if self._process else None
            logger.error("the engine process died with status %s; %d streams end", code, len(self._streams))
            self._fail_everything("the engine process died while it worked on this request")
            now = time.monotonic()
            if len(self._deaths) == MAX_RESTARTS and now - self._deaths[0] < RESTART_WINDOW:
                logger.critical("the engine died %d times in %.0f s: giving up", MAX_RESTARTS + 1, RESTART_WINDOW)
                break
            self._deaths.append(now)
            try:
                await self._launch()
            except BundleInvalid as error:
                logger.critical("the engine cannot be started again: %s", error)
                break
            self._on_restart()
            logger.info("the engine process runs again")
        self.state = "failed"
        self._ready.set()

    def _dispatch(self, report: Report) -> None:
        match report:
            case Step(outputs):
                for output in outputs:
                    if stream := self._streams.get(output.sequence):
                        stream.push(output)
            case AdapterLoaded(name, manifest):
                if (loading := self._loading.get(name)) and not loading.done():
                    loading.set_result(manifest)
            case AdapterRefused(name, message):
                if (loading := self._loading.get(name)) and not loading.done():
                    loading.set_exception(AdapterInvalid(message))
                else:
                    logger.error("adapter %r could not be loaded again: %s", name, message)
            case _:
                logger.error("unexpected report from the engine: %s", type(report).__name__)

    def _fail_everything(self, message: str) -> None:
        for stream in self._streams.values():
            stream.push(Output(stream.sequence, [], error=message))
        self._streams.clear()
        for loading in self._loading.values():
            if not loading.done():
                loading.set_exception(EngineFailed(message))

    async def _end_process(self) -> None:
        """Close the pipe, which ends the process; kill it if it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
