"""An engine process that runs no model: its sequences get the tokens of a script, at a given pace.

It takes and sends the messages of the real one, so a server in front of it does everything but compute.
"""

from __future__ import annotations

import heapq
import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import App, Parameter
from cyclopts.validators import Number
from msgspec import Struct

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Output, Start, Submit
from loraplex.server.engine.process import main

MAX_RUNNING = 128
LONGEST_SLEEP = 0.002
"""Seconds; commands are looked at in between."""
GOLDEN = 0.6180339887
"""Multiples of it, modulo 1, lie evenly in the interval however many they are."""

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]

app = App(help=__doc__)


class Pace(Struct, frozen=True):
    """When tokens come."""

    seconds: float = 0.0
    """From one output of a sequence to its next; 0 is as fast as they can be written."""
    together: bool = True
    """All sequences at the same instants, as in the steps of an engine; or each at instants of its own."""
    at_once: int = 1
    """Tokens in an output."""


class Row:
    """One running sequence."""

    def __init__(self, submit: Submit, script: list[int]) -> None:
        self.sequence = submit.sequence
        self.script = script or submit.prompt
        self.max_tokens = submit.max_tokens
        self.number = submit.sampling.seed
        self.sent = 0

    def take(self, count: int) -> list[int]:
        """The next tokens, at most so many."""
        first, self.sent = self.sent, min(self.sent + count, self.max_tokens)
        return [self.script[index % len(self.script)] for index in range(first, self.sent)]


class ScriptedLane:
    """Gives every sequence the script's tokens, from its beginning again after its end, up to max_tokens.

    `stamps`, float64 [requests, tokens], gets time.perf_counter() at each token's output, in the row that the request
    names as its seed.
    """

    name = "scripted"
    device = "none"
    unsupported: frozenset[str] = frozenset()
    kv_tokens: int | None = None
    kv_usage: float | None = None
    places: int | None = None

    def __init__(self, script: list[int], pace: Pace, stamps: np.memmap | None) -> None:
        """With an empty script, a sequence gets its own prompt."""
        self._script = script
        self._pace = pace
        self._stamps = stamps
        self._rows: dict[int, Row] = {}
        self._due: list[tuple[float, int]] = []
        """Times of time.perf_counter() with sequences, a heap."""

    @property
    def busy(self) -> bool:
        return bool(self._rows)

    def submit(self, request: Submit) -> None:
        self._rows[request.sequence] = Row(request, self._script)
        step, now = self._pace.seconds, time.perf_counter()
        if step:
            phase = 0.0 if self._pace.together else request.sequence * GOLDEN % 1 * step
            now = (math.floor((now - phase) / step) + 1) * step + phase
        heapq.heappush(self._due, (now, request.sequence))

    def step(self) -> list[Output]:
        """The outputs that are due; none if they are not due soon."""
        wait = self._due[0][0] - time.perf_counter()
        if wait > 0:
            time.sleep(min(wait, LONGEST_SLEEP))
        now = time.perf_counter()
        outputs = []
        again = []
        while self._due and self._due[0][0] <= now:
            due, sequence = heapq.heappop(self._due)
            if row := self._rows.get(sequence):
                outputs.append(self._output(row, now))
                if row.sequence in self._rows:
                    # After a stop of the machine the pace goes on; what was missed is not made up for.
                    again.append((max(due + self._pace.seconds, now - self._pace.seconds), sequence))
        for entry in again:
            heapq.heappush(self._due, entry)
        return outputs

    def cancel(self, sequence: int) -> None:
        self._rows.pop(sequence, None)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        """Any will do."""

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Every adapter has its place."""

    def unload_adapter(self, name: str) -> None:
        """There is nothing to forget."""

    def _output(self, row: Row, now: float) -> Output:
        first = row.sent
        tokens = row.take(self._pace.at_once)
        if self._stamps is not None:
            self._stamps[row.number, first : row.sent] = now
        if row.sent == row.max_tokens:
            del self._rows[row.sequence]
            return Output(row.sequence, tokens, "length")
        return Output(row.sequence, tokens)


@app.default
def run(
    *,
    script: tuple[int, ...] = (),
    seconds: float = 0.0,
    together: bool = True,
    at_once: AtLeastOne = 1,
    stamps: Path | None = None,
) -> None:
    """Be the engine process of a server.

    Parameters
    ----------
    script
        Token ids, once for each; without them a sequence gets its own prompt.
    seconds
        From one output of a sequence to its next; 0 is as fast as they can be written.
    together
        All sequences at the same instants; or each at instants of its own.
    at_once
        Tokens in an output.
    stamps
        A .npy file, float64 [requests, tokens], for the time of each token.
    """
    times = np.load(stamps, mmap_mode="r+") if stamps else None
    lane = ScriptedLane(list(script), Pace(seconds, together, at_once), times)

    def open_lane(start: Start) -> tuple[Lane, int]:
        return lane, start.max_running or MAX_RUNNING

    main(open_lane)


if __name__ == "__main__":
    app()
