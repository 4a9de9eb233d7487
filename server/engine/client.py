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
    Report,
    Sampling,
    Start,
    Started,
    StartFailed,
    Step,
    Submit,
    UnloadAdapter,
    pack,
    unpack_report,
)
from loraplex.server.engine.stream import Stream
from loraplex.server.errors import AdapterInvalid, BundleInvalid, EngineFailed, LoraplexError, NotReady

logger = logging.getLogger("loraplex.engine")

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

MAX_ATTEMPTS = 2
"""Times a sequence is given to an engine: once more where the first died before it answered, since the client has seen
nothing; not again and again, since the sequence may be what it dies of."""
MAX_RESTARTS = 5
RESTART_WINDOW = 60.0
"""An engine that dies more than MAX_RESTARTS times within so many seconds is not started again."""
RESTART_PAUSE = 0.5
"""Seconds before another try after one that failed."""
STOP_TIMEOUT = 5.0
"""Seconds the engine process gets to end by itself."""


class EngineClient:
    """Use as an async context manager: entering starts the engine, leaving stops it.

    Entering raises BundleInvalid if the base cannot be loaded.
    """

    def __init__(
        self, start: Start, *, on_restart: Callable[[], None], on_adapter_lost: Callable[[str, str], None]
    ) -> None:
        """`on_adapter_lost` gets name and reason of an adapter that a restarted engine cannot load any more."""
        self.state: State = "starting"
        self.started: Started | None = None
        self._start = start
        self._on_restart = on_restart
        self._on_adapter_lost = on_adapter_lost
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._streams: dict[int, Stream] = {}
        self._sequences = itertools.count(1)
        self._kv_usage = 0.0
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
        self.fail_everything(NotReady("the server is shutting down"))

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache in use, from 0 to 1; None where the lane does not tell."""
        if self.started is None or self.started.kv_tokens is None:
            return None
        # A lane that has nothing to do says nothing.
        return self._kv_usage if self._streams else 0.0

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

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter that no request uses any more."""
        self._adapters.pop(name, None)
        if self.state == "ready":
            self._send(UnloadAdapter(name))

    async def ready(self) -> None:
        """Wait until the engine runs. Raises NotReady if it will not."""
        if self.state in ("failed", "stopped"):
            raise NotReady("the engine is down for good: the server's log says why")
        await self._ready.wait()
        if self.state != "ready":
            raise NotReady("the engine is not running")

    @asynccontextmanager
    async def generate(
        self,
        prompt: list[int],
        *,
        adapter: str | None,
        max_tokens: int,
        sampling: Sampling,
        guide: Guide | None,
        on_end: Callable[[], None],
    ) -> AsyncIterator[Stream]:
        """Run one sequence; leaving the context before its end cancels it.

        `on_end` is called when the engine is done with the sequence, however much of it has been read by then. The
        prompt's ids must be in range and leave room for max_tokens: the engine checks neither. Raises NotReady.
        """
        await self.ready()
        sequence = next(self._sequences)
        stream = Stream(Submit(sequence, adapter, prompt, max_tokens, sampling, guide), on_end)
        self._streams[sequence] = stream
        try:
            self._send(stream.submit)
            yield stream
        finally:
            if self._streams.pop(sequence, None) and not stream.ended and self.state == "ready":
                self._send(Cancel(sequence))

    def fail(self, stream: Stream, error: LoraplexError) -> None:
        """End one sequence with an error, after the outputs that are there."""
        if not stream.ended:
            stream.fail(error)
            self._send(Cancel(stream.submit.sequence))

    def fail_everything(self, error: LoraplexError) -> None:
        """End whatever waits for the engine, which goes on running."""
        for stream in self._streams.values():
            self.fail(stream, error)
        self._streams.clear()
        for loading in self._loading.values():
            if not loading.done():
                loading.set_exception(error)

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
            start_new_session=True,  # a terminal's Ctrl-C is for the server, which ends this process
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
        await self._load_again()
        self.state = "ready"
        self._ready.set()

    async def _load_again(self) -> None:
        """Load every adapter known into a fresh engine. Raises BundleInvalid if it dies of it."""
        adapters = dict(self._adapters)
        for name, folder in adapters.items():
            self._send(LoadAdapter(name, str(folder)))
        for _ in adapters:
            match await self._receive():
                case AdapterLoaded():
                    pass
                case AdapterRefused(name, message):
                    logger.error("adapter %r could not be loaded again: %s", name, message)
                    self._adapters.pop(name, None)
                    self._on_adapter_lost(name, message)
                case _:
                    raise BundleInvalid("the engine process ended while it loaded the adapters")
        for name in adapters.keys() - self._adapters.keys():  # unloaded meanwhile
            self._send(UnloadAdapter(name))

    async def _supervise(self) -> None:
        """Hand reports on until the engine dies; start it again unless it dies all the time."""
        while True:
            while (report := await self._receive()) is not None:
                self._dispatch(report)
            self._ready.clear()
            self.state = "restarting"
            code = await self._process.wait() if self._process else None
            again = {
                sequence: stream
                for sequence, stream in self._streams.items()
                if not stream.begun and not stream.ended and stream.attempts < MAX_ATTEMPTS
            }
            for sequence in again:
                del self._streams[sequence]
            logger.error(
                "the engine process died with status %s; %d streams end, %d start again",
                code,
                len(self._streams),
                len(again),
            )
            died = EngineFailed("the engine process died while it worked on this request")
            self.fail_everything(died)
            self._streams = again
            if not await self._relaunch():
                break
            self._on_restart()
            logger.info("the engine process runs again")
            for stream in self._streams.values():
                stream.attempts += 1
                self._send(stream.submit)
        self.state = "failed"
        self.fail_everything(died)
        self._ready.set()

    async def _relaunch(self) -> bool:
        """Start the engine again; False once it has died too often."""
        while True:
            now = time.monotonic()
            if len(self._deaths) == MAX_RESTARTS and now - self._deaths[0] < RESTART_WINDOW:
                logger.critical("the engine died %d times in %.0f s: giving up", MAX_RESTARTS + 1, RESTART_WINDOW)
                return False
            self._deaths.append(now)
            try:
                await self._launch()
            except BundleInvalid as error:
                logger.error("the engine could not be started again: %s", error)
                await asyncio.sleep(RESTART_PAUSE)  # memory that the last one held may not be free yet
            else:
                return True

    def _dispatch(self, report: Report) -> None:
        match report:
            case Step(outputs, kv_usage):
                self._kv_usage = kv_usage or 0.0
                for output in outputs:
                    if stream := self._streams.get(output.sequence):
                        stream.push(output)
            case AdapterLoaded(name, manifest):
                if (loading := self._loading.get(name)) and not loading.done():
                    loading.set_result(manifest)
            case AdapterRefused(name, message):
                if (loading := self._loading.get(name)) and not loading.done():
                    loading.set_exception(AdapterInvalid(message))
            case _:
                logger.error("unexpected report from the engine: %s", type(report).__name__)

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
