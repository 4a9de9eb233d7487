"""The API process's end of the border: starts the engine process, talks to it, and starts it again if it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.adapters import EngineAdapters
from loraplex.server.engine.connection import ENGINE, Connection
from loraplex.server.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    Cancel,
    Command,
    Guide,
    Pong,
    Report,
    Sampling,
    Start,
    Started,
    StartFailed,
    Step,
    Submit,
)
from loraplex.server.engine.restarts import MAX_RESTARTS, Restarts
from loraplex.server.engine.stream import Stream, Take
from loraplex.server.engine.watchdog import Watchdog
from loraplex.server.errors import BundleInvalid, EngineFailed, LoraplexError, NotReady

logger = logging.getLogger("loraplex.engine")

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

MAX_ATTEMPTS = 2
"""Times a sequence is given to an engine: once more where the first died before it answered, since the client has seen
nothing; not again and again, since the sequence may be what it dies of."""
SLOWER = 3
"""Times that an engine may take longer to load the base than the first one did, besides what a step may take."""
RESTART_PAUSE = 0.5
"""Seconds before another try after one that failed."""


class EngineClient:
    """Use as an async context manager: entering starts the engine, leaving stops it.

    Entering raises BundleInvalid if the base cannot be loaded.
    """

    def __init__(
        self,
        start: Start,
        *,
        on_restart: Callable[[], None],
        on_adapter_lost: Callable[[str, str], None],
        step: AbstractContextManager[None],
        timeout: float = 0,
        command: Sequence[str] = ENGINE,
    ) -> None:
        """`on_adapter_lost` gets name and reason of an adapter that a restarted engine cannot load any more; a step's
        outputs are handed on within `step`; `timeout` is what one may take, in seconds, 0 for no limit.
        """
        self.state: State = "starting"
        self.started: Started | None = None
        self._start = start
        self._command = command
        self._on_restart = on_restart
        self._step = step
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._streams: dict[int, Stream] = {}
        self._sequences = itertools.count(1)
        self._kv_usage = 0.0
        self._adapters = EngineAdapters(self._tell, on_adapter_lost)
        self._restarts = Restarts()
        self._patience: float | None = None
        """Seconds in which a process has to load the base; None for the first."""
        self._watchdog = Watchdog(timeout, lambda: bool(self._streams) or self._adapters.waiting)
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
        await self._disconnect()
        self.fail_everything(NotReady("the server is shutting down"))
        self._adapters.let_go()

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache has room for; None where the lane does not tell."""
        return self.started.kv_tokens if self.started else None

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache in use, from 0 to 1; None where the lane does not tell."""
        # A lane that has nothing to do says nothing.
        usage = self._kv_usage if self._streams else 0.0
        return None if self.kv_tokens is None else usage

    @property
    def unsupported(self) -> frozenset[str]:
        """Fields of Sampling, and "guide", that the running lane cannot honour."""
        return frozenset(self.started.unsupported if self.started else ())

    async def load_adapter(self, name: str, folder: Path) -> AdapterManifest:
        """Check and load an adapter. Raises AdapterInvalid, NotReady or EngineFailed."""
        await self.ready()
        return await self._adapters.load(name, folder)

    @property
    def places(self) -> int | None:
        """Adapters that the model has room for at the same time; None where each has a place of its own."""
        return self.started.places if self.started else None

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Never take an adapter's place in the model for another's, or do so again."""
        self._adapters.pin(name, pinned)

    def unload_adapter(self, name: str) -> asyncio.Future[None]:
        """Forget an adapter that no request uses any more; done when the engine does not read its folder any more."""
        unloading = self._adapters.unload(name)
        if self.state in ("failed", "stopped"):
            self._adapters.let_go()
        return unloading

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
        take: Take,
        on_end: Callable[[], None],
    ) -> AsyncIterator[Stream]:
        """Run one sequence; leaving the context before its end cancels it.

        `take` gets each output as soon as it is here. `on_end` is called when the engine is done with the sequence. The
        prompt's ids must be in range and leave room for max_tokens: the engine checks neither. Raises NotReady.
        """
        await self.ready()
        sequence = next(self._sequences)
        stream = Stream(Submit(sequence, adapter, prompt, max_tokens, sampling, guide), take, on_end)
        self._streams[sequence] = stream
        try:
            self._send(stream.submit)
            yield stream
        finally:
            if self._streams.pop(sequence, None) and not stream.ended and self.state == "ready":
                self._send(Cancel(sequence))

    def fail(self, stream: Stream, error: LoraplexError) -> None:
        """End one sequence with an error."""
        if not stream.ended:
            stream.fail(error)
            self._send(Cancel(stream.submit.sequence))

    def fail_everything(self, error: LoraplexError) -> None:
        """End whatever waits for the engine, which goes on running."""
        for stream in self._streams.values():
            self.fail(stream, error)
        self._streams.clear()
        self._adapters.fail(error)

    def _tell(self, command: Command) -> None:
        """As `_send`, but a process that is not ready yet learns it when it is (`EngineAdapters.load_again`)."""
        if self.state == "ready":
            self._send(command)

    def _send(self, command: Command) -> None:
        if self._connection:
            self._connection.send(command)

    async def _launch(self) -> None:
        """Start the process and load the base and every adapter known. Raises BundleInvalid."""
        connection = self._connection = await Connection.open(self._command)
        connection.send(self._start)
        since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience):
                report = await connection.receive()
        except TimeoutError:
            raise BundleInvalid(f"it has not loaded the base within {self._patience:.0f} s") from None
        match report:
            case Started() as started:
                self.started = started
                if self._watchdog.timeout and self._patience is None:
                    self._patience = self._watchdog.timeout + SLOWER * (asyncio.get_running_loop().time() - since)
            case StartFailed(message):
                await self._disconnect()
                raise BundleInvalid(message)
            case _:
                code = await connection.wait()
                raise BundleInvalid(f"the engine process ended with status {code} while it loaded the base")
        await self._adapters.load_again(connection)
        self.state = "ready"
        self._ready.set()

    async def _supervise(self) -> None:
        """Hand reports on until the engine dies; start it again unless it dies all the time."""
        while True:
            assert self._connection is not None
            async with self._watchdog.over(self._connection):
                await self._connection.hand_to(self._dispatch)
            self._ready.clear()
            self.state = "restarting"
            code = await self._connection.close()  # it may have closed its pipe and hang
            self._adapters.let_go()
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
            happened = "hung and was ended" if self._watchdog.bit else "died"
            died = EngineFailed(f"the engine process {happened} while it worked on this request")
            self.fail_everything(died)
            self._streams = again
            if not await self._relaunch():
                break
            self._on_restart()
            logger.info("the engine process runs again")
            for stream in self._streams.values():
                if not stream.ended:  # by its deadline, meanwhile
                    stream.attempts += 1
                    self._send(stream.submit)
        self.state = "failed"
        self.fail_everything(died)
        self._adapters.let_go()
        self._ready.set()

    async def _relaunch(self) -> bool:
        """Start the engine again; False once it has died or could not be started too often."""
        for _ in range(MAX_RESTARTS):
            if not self._restarts.take():
                return False
            try:
                await self._launch()
            except (BundleInvalid, OSError) as error:  # the system may have no process or descriptor left
                logger.error("the engine could not be started again: %s", error)
                await self._disconnect()
                await asyncio.sleep(RESTART_PAUSE)  # memory that the last one held may not be free yet
            else:
                return True
        logger.critical("the engine could not be started again in %d tries: giving up", MAX_RESTARTS)
        return False

    def _dispatch(self, report: Report) -> None:
        match report:
            case Step(outputs, kv_usage):
                self._kv_usage = kv_usage or 0.0
                last = {output.sequence: output for output in outputs}
                with self._step:
                    for output in outputs:
                        if stream := self._streams.get(output.sequence):
                            stream.push(output, more=output is not last[output.sequence])
            case AdapterLoaded() | AdapterRefused() | AdapterUnloaded():
                self._adapters.take(report)
            case Pong():
                self._watchdog.answered()
            case _:
                logger.error("unexpected report from the engine: %s", type(report).__name__)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.close()
