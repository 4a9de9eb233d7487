"""The outputs of one sequence on the API process's side of the border."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

from loraplex.server.engine.messages import Output, Submit
from loraplex.server.errors import EngineFailed, InvalidRequest, LoraplexError

logger = logging.getLogger("loraplex.engine")

Take = Callable[[Output, bool], bool]
"""Gets an output, and whether the next one follows at once; says whether the sequence goes on."""


class Stream:
    """Hands on the outputs of one sequence where they are read from the engine.

    A task that waits for each would have to be woken for it, which costs more than what is done with most outputs.
    """

    # What is touched for an output is not in the processor's cache, which is most of what an output costs.
    __slots__ = ("_closed", "_context", "_error", "_on_end", "_over", "_take", "attempts", "begun", "ended", "submit")

    def __init__(self, submit: Submit, take: Take, on_end: Callable[[], None]) -> None:
        self.submit = submit
        self.begun = False
        """The engine has answered."""
        self.attempts = 1
        self.ended = False
        """The engine is done with it."""
        self._take = take
        self._on_end = on_end
        self._context = copy_context()
        """The request's: outputs come in that of the engine's connection."""
        self._closed = False
        """Nothing more is handed on."""
        self._error: Exception | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def push(self, output: Output, more: bool = False) -> None:
        if output.error is not None:
            self.fail(InvalidRequest(output.error) if output.refused else EngineFailed(output.error))
            return
        if self._closed:  # by its reader or its deadline; the engine learns of it meanwhile
            return
        self.begun = True
        try:
            goes_on = self._take(output, more)
        except Exception as error:  # it is this sequence's alone: what others got in the same step is theirs
            self._close(error)
            return
        if output.finish is not None:
            self._end()
        elif not goes_on:
            self._close()

    def fail(self, error: LoraplexError) -> None:
        """End the sequence with an error."""
        if not self.ended:
            self._end(error)

    async def over(self) -> None:
        """Wait for the last output. Raises EngineFailed, InvalidRequest, what `fail` got and what `take` raised."""
        await self._over
        if self._error is not None:
            raise self._error

    def _end(self, error: LoraplexError | None = None) -> None:
        self.ended = True
        self._close(error)
        try:
            self._on_end()
        except Exception:  # as in `push`: others wait for theirs
            self._context.run(logger.exception, "the end of a sequence cannot be handled")

    def _close(self, error: Exception | None = None) -> None:
        self._closed = True
        if not self._over.done():  # as when the task that waits for it was cancelled
            self._error = error
            self._over.set_result(None)
