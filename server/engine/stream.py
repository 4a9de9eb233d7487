"""The outputs of one sequence on the API process's side of the border."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from loraplex.server.engine.messages import Output, Submit
from loraplex.server.errors import EngineFailed, InvalidRequest, LoraplexError


class Stream:
    """The outputs of one sequence, as they arrive. Iterating ends with the output that says why it ended."""

    def __init__(self, submit: Submit, on_end: Callable[[], None]) -> None:
        self.submit = submit
        self.begun = False
        """The engine has answered."""
        self.attempts = 1
        self.ended = False
        """The engine is done with it; outputs may still wait to be read."""
        self._on_end = on_end
        self._outputs: asyncio.Queue[Output | LoraplexError] = asyncio.Queue()
        self._finished = False

    def push(self, output: Output) -> None:
        if output.error is not None:
            self.fail(InvalidRequest(output.error) if output.refused else EngineFailed(output.error))
            return
        self.begun = True
        self._outputs.put_nowait(output)
        if output.finish is not None:
            self._end()

    def fail(self, error: LoraplexError) -> None:
        """End the sequence with an error, after the outputs that are there."""
        if not self.ended:
            self._outputs.put_nowait(error)
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._on_end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """Next output. Raises EngineFailed if the engine could not go on, InvalidRequest if the request is at fault."""
        if self._finished:
            raise StopAsyncIteration
        output = await self._outputs.get()
        if isinstance(output, LoraplexError):
            self._finished = True
            raise output
        self._finished = output.finish is not None
        return output
