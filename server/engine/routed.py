"""The routed lane: all sequences in one batch, whatever their adapters, on the stock og.Engine.

The choice of an adapter is part of the graph (`linker`, `routing`). With the fused operator the graph has room for
adapters, and one that a request waits for is copied into it between two steps. Without it adapters are part of the
graph, and a change of their set is a change of engines: the new model folder is linked by a thread while traffic goes
on; its engine is then loaded beside the old one, takes every sequence from then on, and the old one runs dry and is
freed. So it is too where an adapter needs more room than the graph has. Loading happens between two steps and not in a
thread, because CUDA forbids allocations anywhere in the process while a CUDA graph is being captured. Where memory does
not hold two engines, the running sequences move over with what they have generated.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.bank import is_adapter
from loraplex.server.engine.fused import Layout, largest_ranks
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.linker import Linked, link, link_slots, takes_operator, trim
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.packing import Packer
from loraplex.server.engine.residency import choose
from loraplex.server.engine.routed_engine import UNSUPPORTED, EngineOptions, RoutedEngine, asked_of
from loraplex.server.engine.routed_engine import Sequence as Running
from loraplex.server.engine.slots import Adapter
from loraplex.server.errors import AdapterInvalid, BundleInvalid, LoraplexError

logger = logging.getLogger("loraplex.routed")

IDLE_WAIT = 0.02
"""Seconds a step waits for the linker where nothing runs."""


@dataclass(frozen=True)
class Link:
    """A model folder in the making, with the adapters that are part of it, in the order of their slots."""

    linked: Future[Linked]
    adapters: tuple[Adapter, ...]
    since: float


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
        operator: Path | None = None,
        ranks: Mapping[str, int] | None = None,
        fallback: Callable[[], Lane | None] | None = None,
        fallback_unsupported: frozenset[str] = frozenset(),
    ) -> None:
        """Load the base found in `folder`: a bundle's paged variant on "cuda", its generator variant on "cpu".

        `cache` takes linked folders and should lie on the file system of `folder`, so that weights can be hard-linked.
        Of the adapters at most `max_linked` are in the graph at a time. While requests wait for another engine, an old
        one gets `drain_seconds` to run dry before its sequences move. `operator` is the compiled operator of `fused`;
        `ranks`, by projection, is the room to make for adapters to come. `fallback` opens a lane over the same base
        that takes what this one cannot do, but for `fallback_unsupported`, and requests that would wait for a relink;
        it is called when that is first needed, and may find no room.

        Raises BundleInvalid.
        """
        self.device = device
        self.kv_tokens = None
        self.kv_usage = None  # the engine has no call that tells
        self.unsupported = UNSUPPORTED & fallback_unsupported if fallback else UNSUPPORTED
        self._fallback_unsupported = fallback_unsupported
        self._folder = folder
        self._cache = cache
        self._threads = threads
        self._options = options or EngineOptions()
        self._max_linked = max_linked
        self._drain_seconds = drain_seconds
        self._open_fallback = fallback
        self._fallback: Lane | None = None
        self._known: dict[str, Adapter] = {}
        self._folders: dict[Adapter, tuple[Path, AdapterManifest]] = {}
        self._used: dict[Adapter, int] = {}
        self._clock = itertools.count(1)
        self._waiting: deque[Running] = deque()
        self._ended: list[Output] = []
        self._operator = operator if operator and device == "cuda" and takes_operator(folder) else None
        self._outgrown: set[Adapter] = set()
        self._packer = Packer()
        self._linker = ThreadPoolExecutor(1, thread_name_prefix="linker")
        self._linking: Link | None = None
        self._draining: RoutedEngine | None = None
        self._hopeless: tuple[Adapter, ...] = ()
        self._broken: set[Adapter] = set()
        try:
            linked = self._link_slots(dict(ranks or {})) if self._operator else link(folder, {}, cache)
            self._engine = self._load(linked, ())
        except (OSError, RuntimeError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        self._swapped = time.monotonic()

    @property
    def busy(self) -> bool:
        return bool(
            self._ended
            or self._engine.running
            or self._engine.cold
            or self._waiting
            or self._draining
            or self._linking
            or self._next_link()
            or (self._fallback and self._fallback.busy)
        )

    @property
    def linked(self) -> set[str]:
        """The adapters whose requests start at once."""
        return {name for name, adapter in self._known.items() if adapter in self._engine.slots}

    @property
    def layout(self) -> Layout | None:
        """Room for adapters in the graph, where it has the fused operator."""
        return self._engine.linked.layout

    def submit(self, request: Submit) -> None:
        if error := self._refusal(request):
            self._ended.append(Output(request.sequence, [], error=error, refused=True))
            return
        adapter = self._known[request.adapter] if request.adapter is not None else None
        if adapter:
            self._used[adapter] = next(self._clock)
        unknown = asked_of(request, UNSUPPORTED)
        cold = adapter is not None and self._operator is None and adapter not in self._engine.slots
        able = not asked_of(request, self._fallback_unsupported)
        if (unknown or cold) and able and (fallback := self._take_fallback()):
            fallback.submit(request)
        elif unknown:
            problem = f"there is no memory for an engine that has {unknown}"
            self._ended.append(Output(request.sequence, [], error=problem))
        else:
            self._begin(Running(request, adapter))

    def step(self) -> list[Output]:
        self._change_adapters()
        outputs, self._ended = self._ended, []
        for engine in (self._draining, self._engine):
            if engine and engine.running and not engine.warming:
                outputs += engine.run()
        if self._fallback and self._fallback.busy:
            outputs += self._fallback.step()
        if outputs or (self._engine.running and not self._engine.warming):
            return outputs
        if self._engine.cold and not (self._draining or self._waiting):
            self._engine.warm_up()
            if not self._engine.cold:
                logger.info("CUDA graphs captured %.1f s after the engine was loaded", time.monotonic() - self._swapped)
        else:
            pending = [*self._packer.pending, *([self._linking.linked] if self._linking else ())]
            wait(pending, IDLE_WAIT, "FIRST_COMPLETED")
        return outputs

    def cancel(self, sequence: int) -> None:
        for engine in (self._engine, self._draining):
            if engine:
                engine.close(sequence)
        self._waiting = deque(waiting for waiting in self._waiting if waiting.request.sequence != sequence)
        if self._fallback:
            self._fallback.cancel(sequence)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        """Make a checked adapter available, or replace one: sequences that run go on with the one they began with."""
        adapter = Adapter(name, folder / manifest.file, manifest.sha256, manifest.ranks)
        self.unload_adapter(name)
        if self._fallback:
            self._fallback.load_adapter(name, folder, manifest)
        self._known[name] = adapter
        self._folders[adapter] = folder, manifest
        self._used[adapter] = next(self._clock)
        self._hopeless = ()
        self._broken.discard(adapter)
        if self._outgrows(adapter):
            self._outgrown.add(adapter)
        elif self._operator and self.layout:
            self._packer.prepare(adapter, self.layout, self._engine.allocate)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter: sequences that run or wait go on. Unknown ones are ignored."""
        if (adapter := self._known.pop(name, None)) is None:
            return
        del self._folders[adapter]
        self._packer.forget(adapter)
        self._outgrown.discard(adapter)
        if self._fallback:
            self._fallback.unload_adapter(name)
        if not any(waiting.adapter == adapter for waiting in self._waiting):
            self._used.pop(adapter, None)

    def _refusal(self, request: Submit) -> str | None:
        """Why a request cannot run. og.Engine checks no ids, and one beyond the vocabulary would choose an adapter."""
        if request.adapter is not None and request.adapter not in self._known:
            return f"there is no adapter {request.adapter!r}"
        if not request.prompt or not all(0 <= token < self._engine.linked.vocab_size for token in request.prompt):
            return f"the prompt is empty or has token ids out of range: 0 .. {self._engine.linked.vocab_size - 1}"
        if unknown := asked_of(request, self.unsupported):
            return f"the routed engine has no {unknown}"
        return None

    def _take_fallback(self) -> Lane | None:
        if self._fallback is None and self._open_fallback and (lane := self._open_fallback()):
            for adapter, (folder, manifest) in self._folders.items():
                try:
                    lane.load_adapter(adapter.name, folder, manifest)
                except AdapterInvalid as error:  # unloaded, of which the word is on its way, and its file is gone
                    logger.warning("%s", error.message)
            self._fallback = lane
        return self._fallback

    def _begin(self, sequence: Running) -> None:
        if sequence.adapter is not None and not self._may_begin(sequence.adapter):
            self._waiting.append(sequence)
            return
        try:
            self._engine.begin(sequence)
        except RuntimeError as error:
            self._ended.append(Output(sequence.request.sequence, [], error=str(error), refused=True))

    def _may_begin(self, adapter: Adapter) -> bool:
        """Whether it has a slot, and none of the adapters that wait is to have it."""
        return adapter in self._engine.slots and adapter not in self._engine.slots.leaving

    def _next_link(self) -> tuple[Adapter, ...] | None:
        """The adapters for which another engine is needed; None where this one will do."""
        if self._operator and not self._outgrown and not (self._waiting and self._engine.slots.worn_out):
            return None
        waiting = [sequence.adapter for sequence in self._waiting if sequence.adapter]
        adapters = dict.fromkeys((*self._known.values(), *waiting))
        known = {adapter: self._used[adapter] for adapter in adapters if adapter not in self._broken}
        if self._operator:
            names: tuple[Adapter, ...] | None = tuple(known)
        else:
            names = choose(known, self._engine.slots.adapters, waiting, self._max_linked)
        return names if names != self._hopeless else None

    def _outgrows(self, adapter: Adapter) -> bool:
        """Whether the graph has no room for an adapter, however many slots are free."""
        return self._operator is not None and not (self.layout and self.layout.holds(adapter.ranks))

    def _change_adapters(self) -> None:
        """Carry the change of adapters forward by what can be done now."""
        if self._linking:
            if self._linking.linked.done():
                self._swap(self._linking)
        elif self._draining:
            if not self._draining.running:
                self._draining = None
                trim(self._cache, keep=self._engine.linked.folder)
            elif self._next_link() and time.monotonic() - self._swapped > self._drain_seconds:
                self._move(self._draining.take_all())
        elif adapters := self._next_link():
            since = time.monotonic()
            if self._operator:
                ranks = largest_ranks(adapter.ranks for adapter in adapters)
                self._linking = Link(self._linker.submit(self._link_slots, ranks), adapters, since)
            else:
                files = {adapter.name: adapter.file for adapter in adapters}
                self._linking = Link(self._linker.submit(link, self._folder, files, self._cache), adapters, since)
        if self._operator and self._waiting:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Copy what requests wait for into the graph, those that waited longest first, and let these begin."""
        engine, slots, layout = self._engine, self._engine.slots, self._engine.linked.layout
        short = 0
        for adapter in dict.fromkeys(sequence.adapter for sequence in self._waiting):
            if adapter is None or adapter in slots or layout is None or not layout.holds(adapter.ranks):
                continue
            try:
                packed = self._packer.get(adapter, layout, engine.allocate)
                short += packed is not None and not engine.write(adapter, packed, self._used)
            except (OSError, RuntimeError, LoraplexError) as error:
                logger.error("adapter %s cannot be used: %s", adapter.name, error)
                self._fail_waiting({adapter}, f"the adapter cannot be linked: {error}")
        slots.promise(short, engine.busy_adapters(), self._used)
        if any(sequence.adapter and self._may_begin(sequence.adapter) for sequence in self._waiting):
            self._move(())

    def _swap(self, link: Link) -> None:
        self._linking = None
        try:
            linked = link.linked.result()
        except (OSError, LoraplexError) as error:
            logger.error("adapters cannot be linked: %s", error)
            broken = {adapter for adapter in link.adapters if not is_adapter(adapter.file)}
            self._broken |= broken
            if not broken:
                # The same set would fail again; a change of the adapters makes it another one.
                self._hopeless = link.adapters
            self._fail_waiting(broken or set(link.adapters), f"the adapter cannot be linked: {error}")
            return
        since = time.monotonic()
        moving: list[Running] = []
        adapters = () if self._operator else link.adapters
        try:
            engine = self._load(linked, adapters)
            self._draining = self._engine
            self._draining.stop_warm_up()
        except RuntimeError as error:
            logger.warning("no room for a second engine, running sequences move: %s", error)
            moving = self._engine.take_all()
            del self._engine
            engine = self._load(linked, adapters)
        self._engine = engine
        self._outgrown = {adapter for adapter in self._outgrown if self._outgrows(adapter)}
        self._swapped = time.monotonic()
        logger.info(
            "%d adapters linked in %.2f s, engine loaded in %.2f s",
            len(link.adapters),
            since - link.since,
            self._swapped - since,
        )
        self._move(moving)

    def _move(self, sequences: Sequence[Running]) -> None:
        """Begin or go on with these sequences and those that wait, or let them wait."""
        waiting, self._waiting = self._waiting, deque()
        for sequence in (*sequences, *waiting):
            self._begin(sequence)

    def _fail_waiting(self, adapters: set[Adapter], error: str) -> None:
        failing = [sequence for sequence in self._waiting if sequence.adapter in adapters]
        self._ended += [Output(sequence.request.sequence, [], error=error) for sequence in failing]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.adapter not in adapters)

    def _link_slots(self, ranks: dict[str, int]) -> Linked:
        if not ranks or self._operator is None:
            return link(self._folder, {}, self._cache)
        return link_slots(self._folder, ranks, self._max_linked, self._cache, self._operator)

    def _load(self, linked: Linked, adapters: Sequence[Adapter]) -> RoutedEngine:
        return RoutedEngine(linked, adapters, self.device, self._threads, self._options)
