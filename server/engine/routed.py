"""The routed lane: all sequences in one batch, whatever their adapters, on the stock og.Engine.

The choice of an adapter is part of the graph (`linker`, `routing`). With the fused operator the graph has room for
adapters, and one that a request waits for is copied into it between two steps. Where all slots are in use, those of the
adapters that had theirs longest fall free in turn: they begin no more sequences, and what still runs of them after a
while gives way and goes on when the adapter is back. Without the operator a change of adapters is one of engines
(`engines`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.engines import Engines
from loraplex.server.engine.folder_cache import Held
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.lane_beside import LaneBeside
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.packing import Packer
from loraplex.server.engine.routed_engine import UNSUPPORTED, EngineOptions
from loraplex.server.engine.routed_sequence import Sequence as Running
from loraplex.server.engine.routed_sequence import is_seeded
from loraplex.server.engine.slots import Adapter
from loraplex.server.errors import BundleInvalid, LoraplexError

logger = logging.getLogger("loraplex.routed")

CAPTURE_SECONDS = 60.0
"""Before the server is ready."""
IDLE_WAIT = 0.02
"""Seconds a step waits for the linker where nothing runs."""


class RoutedLane:
    """See the module. Owned by one thread."""

    name = "routed"

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        threads: int,
        cache: Path,
        options: EngineOptions | None = None,
        max_linked: int = 64,
        drain_seconds: float = 5.0,
        turn_seconds: float = 1.0,
        operator: Path | None = None,
        ranks: Mapping[str, int] | None = None,
        expansion: Callable[[], Held] | None = None,
        fallback: Callable[[], Lane | None] | None = None,
        fallback_unsupported: frozenset[str] = frozenset(),
    ) -> None:
        """Load the base found in `folder`: a bundle's paged variant on "cuda", its generator variant on "cpu".

        `cache` takes linked folders and should lie on the file system of `folder`, so that weights can be hard-linked.
        Of the adapters at most `max_linked` are in the graph at a time. While requests wait for another engine, an old
        one gets `drain_seconds` to run dry before its sequences move, and while they wait for a slot, the sequences of
        one that is to fall free get `turn_seconds`. `operator` is the compiled operator of `fused`; `ranks`, by
        projection, is the room to make for adapters to come. `expansion`, called before each link, finds the folder to
        link in place of `folder`. `fallback` opens a lane over the same base that takes what this one cannot do, but
        for `fallback_unsupported`, and requests that would wait for a relink, once it is needed; it may find no room.
        Raises BundleInvalid.
        """
        self.device = device
        self.kv_tokens = self.kv_usage = None  # the engine has no call that tells
        self.unsupported = UNSUPPORTED & fallback_unsupported if fallback else UNSUPPORTED
        self._turn_seconds = turn_seconds
        self._known: dict[str, Adapter] = {}
        self._folders: dict[Adapter, tuple[Path, AdapterManifest]] = {}
        self._fallback = LaneBeside(fallback, fallback_unsupported, self._folders)
        self._used: dict[Adapter, int] = {}
        self._pinned: set[Adapter] = set()
        self._clock = itertools.count(1)
        self._waiting: deque[Running] = deque()
        self._held: set[Adapter] = set()
        """Adapters that keep their slots beyond their turn, for sequences that do not give way."""
        self._ended: list[Output] = []
        self._packer = Packer()
        self._engines = Engines(
            folder,
            device=device,
            threads=threads,
            cache=cache,
            options=options or EngineOptions(),
            max_linked=max_linked,
            drain_seconds=drain_seconds,
            operator=operator,
            ranks=ranks or {},
            pinned=self._pinned,
            expansion=expansion,
        )

    @property
    def busy(self) -> bool:
        engines = self._engines.busy(self._wanted, self._waited_for)
        return bool(self._ended or self._waiting or engines or self._fallback.busy)

    @property
    def places(self) -> int:
        return self._engines.places

    @property
    def linked(self) -> set[str]:
        """The adapters whose requests start at once."""
        return {name for name, adapter in self._known.items() if adapter in self._engines.current.slots}

    @property
    def layout(self) -> Layout | None:
        """Room for adapters in the graph, where it has the fused operator."""
        return self._engines.current.linked.layout

    def capture_graphs(self) -> None:
        """Capture CUDA graphs before requests come, the rest while idle. Raises BundleInvalid if the engine fails."""
        engine, deadline = self._engines.current, time.monotonic() + CAPTURE_SECONDS
        try:
            while engine.cold:
                progress = engine.warm_up()
                if engine.cold and time.monotonic() >= deadline:
                    logger.warning("CUDA graphs take long to capture: %s, the others while nothing runs", progress)
                    break
        except RuntimeError as error:
            raise BundleInvalid(f"CUDA graphs cannot be captured, start with --no-cuda-graphs: {error}") from None
        engine.stop_warm_up()

    def submit(self, request: Submit) -> None:
        if error := self._refusal(request):
            self._ended.append(Output(request.sequence, [], error=error, refused=True))
            return
        adapter = self._known[request.adapter] if request.adapter is not None else None
        if adapter:
            self._used[adapter] = next(self._clock)
        unknown = request.asks_for(UNSUPPORTED)
        engines = self._engines
        cold = adapter is not None and engines.operator is None and adapter not in engines.current.slots
        # The static engine on a CPU takes no seed for a single sequence.
        seeded = self.device == "cpu" and is_seeded(request.sampling)
        if (unknown or cold or seeded) and self._fallback.take(request, adapter if cold else None):
            return
        if unknown:
            problem = f"there is no memory for an engine that has {unknown}"
            self._ended.append(Output(request.sequence, [], error=problem))
        else:
            self._begin(Running(request, adapter))

    def step(self) -> list[Output]:
        self._change_adapters()
        outputs, self._ended = self._ended, []
        engines, engine = self._engines, self._engines.current
        running = [each for each in (engines.draining, engine) if each and each.running and not each.warming]
        for each in running:
            outputs += each.run()
        outputs += self._fallback.step()
        if outputs or running or self._fallback.busy:
            return outputs
        if engine.cold and not (engines.draining or self._waiting):
            engine.warm_up()
        elif pending := [*self._packer.pending, *([engines.linking.linked] if engines.linking else ())]:
            wait(pending, IDLE_WAIT, "FIRST_COMPLETED")
        elif engines.resting:
            time.sleep(IDLE_WAIT)
        return outputs

    def cancel(self, sequence: int) -> None:
        for engine in (self._engines.current, self._engines.draining):
            if engine:
                engine.close(sequence)
        self._waiting = deque(waiting for waiting in self._waiting if waiting.request.sequence != sequence)
        self._fallback.cancel(sequence)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        """Make a checked adapter available, or replace one: sequences that run go on with the one they began with."""
        adapter = Adapter(name, folder / manifest.file, manifest.sha256, manifest.ranks)
        self.unload_adapter(name)
        self._fallback.load_adapter(name, folder, manifest)
        self._known[name] = adapter
        self._folders[adapter] = folder, manifest
        self._used[adapter] = next(self._clock)
        if self._engines.add(adapter) and self._engines.operator and self.layout:
            self._packer.prepare(adapter, self.layout, self._engines.current.allocate)

    def pin_adapter(self, name: str, pinned: bool) -> None:
        if adapter := self._known.get(name):
            (self._pinned.add if pinned else self._pinned.discard)(adapter)

    def unload_adapter(self, name: str) -> list[Future[Any]]:
        """Forget an adapter: sequences that run or wait go on. Unknown ones are ignored."""
        if (adapter := self._known.pop(name, None)) is None:
            return []
        self._pinned.discard(adapter)
        del self._folders[adapter]
        reading = [self._packer.forget(adapter), self._engines.forget(adapter), *self._fallback.unload_adapter(name)]
        if not any(waiting.adapter == adapter for waiting in self._waiting):
            self._used.pop(adapter, None)
        return [each for each in reading if each]

    def _refusal(self, request: Submit) -> str | None:
        """Why a request cannot run. og.Engine checks no ids, and one beyond the vocabulary would choose an adapter."""
        if request.adapter is not None and request.adapter not in self._known:
            return f"there is no adapter {request.adapter!r}"
        vocab_size = self._engines.current.linked.vocab_size
        if not request.prompt or not all(0 <= token < vocab_size for token in request.prompt):
            return f"the prompt is empty or has token ids out of range: 0 .. {vocab_size - 1}"
        if unknown := request.asks_for(self.unsupported):
            return f"the routed engine has no {unknown}"
        return None

    def _begin(self, sequence: Running) -> None:
        adapter, problem = sequence.adapter, ""
        if adapter is not None and not self._may_begin(adapter):
            if not self._engines.is_broken(adapter):
                self._waiting.append(sequence)
                return
            problem = f"the adapter cannot be linked: {adapter.file.name} cannot be read"
        elif not sequence.movable:
            problem = "the engine was replaced, and a guided answer cannot go on in another one: ask again"
        if problem:
            self._ended.append(Output(sequence.request.sequence, [], error=problem))
            return
        try:
            self._engines.current.begin(sequence)
        except RuntimeError as error:
            self._ended.append(Output(sequence.request.sequence, [], error=str(error), refused=True))

    def _may_begin(self, adapter: Adapter) -> bool:
        """Whether it has a slot, and none of the adapters that wait is to have it."""
        slots = self._engines.current.slots
        return adapter in slots and adapter not in slots.leaving

    @property
    def _waited_for(self) -> list[Adapter]:
        return [sequence.adapter for sequence in self._waiting if sequence.adapter]

    def _wanted(self) -> Mapping[Adapter, int]:
        """The adapters that are registered or waited for, and when they were last used."""
        return {adapter: self._used.get(adapter, 0) for adapter in (*self._known.values(), *self._waited_for)}

    def _change_adapters(self) -> None:
        """Carry the change of adapters forward by what can be done now."""
        engines, waiting = self._engines, self._waited_for
        if not (engines.linking or engines.draining):
            waiting += self._fallback.cold(engines.changed)
        if change := engines.advance(self._wanted, waiting):
            if change.failed:
                self._fail_waiting(change.failed, change.error)
            if change.moving or not change.failed:
                self._move(change.moving)
        if engines.operator and self._waiting:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Copy what requests wait for into the graph, those that waited longest first, and let these begin."""
        engine, now = self._engines.current, time.monotonic()
        slots, layout = engine.slots, engine.linked.layout
        short = 0
        written: list[Adapter] = []
        for adapter in dict.fromkeys(self._waited_for):
            if adapter in slots or layout is None or not layout.holds(adapter.ranks):
                continue
            try:
                if (packed := self._packer.get(adapter, layout, engine.allocate)) is None:
                    continue
                # What was written just now has nothing running yet: the next one must not take its slot.
                if engine.write(adapter, packed, self._used, written):
                    written.append(adapter)
                else:
                    short += 1
            except (OSError, RuntimeError, LoraplexError) as error:
                logger.error("adapter %s cannot be used: %s", adapter.name, error)
                self._fail_waiting({adapter}, str(error))
        slots.promise(short, now, self._held, written)
        overdue = slots.overdue(now - self._turn_seconds)
        for adapter in overdue:
            self._waiting.extend(engine.take(adapter))
        self._held = engine.busy_adapters().keys() & overdue
        if any(self._may_begin(adapter) for adapter in self._waited_for):
            self._move(())

    def _move(self, sequences: Sequence[Running]) -> None:
        """Begin or go on with these sequences and those that wait, or let them wait."""
        waiting, self._waiting = self._waiting, deque()
        for sequence in (*sequences, *waiting):
            self._begin(sequence)

    def _fail_waiting(self, adapters: Collection[Adapter], reason: str) -> None:
        error = f"the adapter cannot be linked: {reason}"
        failing = [sequence for sequence in self._waiting if sequence.adapter in adapters]
        self._ended += [Output(sequence.request.sequence, [], error=error) for sequence in failing]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.adapter not in adapters)
