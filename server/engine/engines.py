"""The og.Engine of the routed lane, the one before it that runs dry, and the next one in the making.

With the fused operator the graph has room for adapters, and another engine is needed only where one needs more room
than there is. Without it adapters are part of the graph, and every change of their set is a change of engines: the new
model folder is linked by a thread while traffic goes on; its engine is then loaded beside the old one, takes every
sequence from then on, and the old one runs dry and is freed. Loading happens between two steps and not in a thread,
because CUDA forbids allocations anywhere in the process while a CUDA graph is being captured. Where memory does not
hold two engines, the running sequences move over with what they have generated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from loraplex.server.engine.bank import is_adapter
from loraplex.server.engine.folder_cache import Held, discard, trim
from loraplex.server.engine.fused import largest_ranks
from loraplex.server.engine.linker import CONFIG, Linked, link, link_slots, most_adapters, takes_operator
from loraplex.server.engine.residency import choose
from loraplex.server.engine.routed_engine import EngineOptions, RoutedEngine
from loraplex.server.engine.routed_sequence import Sequence as Running
from loraplex.server.engine.slots import Adapter
from loraplex.server.errors import BundleInvalid, LoraplexError

logger = logging.getLogger("loraplex.routed")

RETRY_SECONDS = 5.0
"""After which linking is tried again that failed for no fault of the adapters, as where a disk is full. Twice as many
each time that it is the engine that cannot be loaded: every try moves what runs."""


@dataclass(frozen=True)
class Link:
    """A model folder in the making, with the adapters that are part of it, in the order of their slots."""

    linked: Future[Linked]
    adapters: tuple[Adapter, ...]
    since: float


@dataclass(frozen=True)
class Change:
    """What a change of engines leaves to the lane."""

    moving: list[Running] = field(default_factory=list)
    """Sequences to go on with in the new engine."""
    failed: frozenset[Adapter] = frozenset()
    """Adapters that cannot be linked."""
    error: str = ""


class Engines:
    """See the module. Owned by one thread."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        threads: int,
        cache: Path,
        options: EngineOptions,
        max_linked: int,
        drain_seconds: float,
        operator: Path | None,
        ranks: Mapping[str, int],
        pinned: set[Adapter],
        expansion: Callable[[], Held] | None,
    ) -> None:
        """The parameters are those of `routed.RoutedLane`. Raises BundleInvalid."""
        self.operator = operator if operator and device == "cuda" and takes_operator(folder) else None
        self.draining: RoutedEngine | None = None
        self.linking: Link | None = None
        self.changed = time.monotonic()
        """When `current` became what it is."""
        self._folder = folder
        self._expansion = expansion
        self._expanded: Held | None = None
        """Keeps the expanded base in its cache."""
        self._device = device
        self._threads = threads
        self._cache = cache
        self._options = options
        self._drain_seconds = drain_seconds
        self._pinned = pinned
        self._linker = ThreadPoolExecutor(1, thread_name_prefix="linker")
        self._outgrown: set[Adapter] = set()
        self._hopeless: tuple[Adapter, ...] = ()
        """A set that could not be linked, and is not tried again before `_again`."""
        self._again = 0.0
        self._failures = 0
        """How often an engine for `_hopeless` could not be loaded, but for the first time."""
        self._broken: set[Adapter] = set()
        try:
            self.places = min(max_linked, most_adapters(folder))
            """Adapters that have room in the graph at the same time."""
            linked = self._link_slots(dict(ranks))
            try:
                self.current = self._load(linked, ())
            except RuntimeError as error:
                logger.warning("the linked model cannot be loaded, it is linked anew: %s", error)
                _discard(linked)
                self.current = self._load(self._link_slots(dict(ranks)), ())
        except OSError as error:
            problem = f"the base in {folder} cannot be linked in {cache}: {error}; --link-cache takes another folder"
            raise BundleInvalid(problem) from None
        except RuntimeError as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        trim(cache)

    def add(self, adapter: Adapter) -> bool:
        """Take note of a new adapter. Whether the graph has room for it, however many slots are free."""
        self._hopeless = ()
        self._broken.discard(adapter)
        if outgrown := self._outgrows(adapter):
            self._outgrown.add(adapter)
        return not outgrown

    def busy(self, adapters: Callable[[], Mapping[Adapter, int]], waiting: Sequence[Adapter]) -> bool:
        """Whether there is something to do; the parameters are those of `next_link`."""
        if self.current.running or self.current.cold or self.draining or self.linking:
            return True
        return self.next_link(adapters, waiting) is not None

    @property
    def resting(self) -> bool:
        """Whether a set that could not be linked is left alone for a while."""
        return bool(self._hopeless) and time.monotonic() < self._again

    def is_broken(self, adapter: Adapter) -> bool:
        """Whether its file could not be read when it was to be linked: nothing links it until it is loaded anew."""
        return adapter in self._broken

    def forget(self, adapter: Adapter) -> Future[Linked] | None:
        """What still reads its file, if anything does."""
        self._broken.discard(adapter)
        # With the operator no adapter is part of what is linked.
        reads = self.linking is not None and self.operator is None and adapter in self.linking.adapters
        return self.linking.linked if self.linking and reads else None

    def next_link(
        self, adapters: Callable[[], Mapping[Adapter, int]], waiting: Sequence[Adapter]
    ) -> tuple[Adapter, ...] | None:
        """The adapters for which another engine is needed; None where this one will do.

        `adapters` says of all that are registered or waited for when they were last used, in any growing unit;
        `waiting` are those that sequences wait for. In most steps nobody has to count the adapters.
        """
        worn_out = bool(waiting) and self.current.slots.worn_out
        if self.operator and not self._outgrown and not worn_out:
            return None
        known = {adapter: used for adapter, used in adapters().items() if adapter not in self._broken}
        if self.operator:
            self._outgrown &= known.keys()  # the others were unloaded, and nobody waits for them any more
            names = tuple(known) if self._outgrown or worn_out else None
        else:
            names = choose(known, self.current.slots.adapters, waiting, self.places, self._pinned)
        return None if self.resting and names == self._hopeless else names

    def advance(self, adapters: Callable[[], Mapping[Adapter, int]], waiting: Sequence[Adapter]) -> Change | None:
        """Carry a change of engines forward by what can be done now; the parameters are those of `next_link`."""
        if self.linking:
            return self._swap(self.linking) if self.linking.linked.done() else None
        if self.draining:
            if not self.draining.running:
                self.draining = None
                trim(self._cache)
            elif (
                time.monotonic() - self.changed > self._drain_seconds
                and any(sequence.gives_way for sequence in self.draining.running.values())
                and self.next_link(adapters, waiting)
            ):
                return Change(self.draining.take_willing())
        elif chosen := self.next_link(adapters, waiting):
            since = time.monotonic()
            if self.operator:
                ranks = largest_ranks(adapter.ranks for adapter in chosen)
                self.linking = Link(self._linker.submit(self._link_slots, ranks), chosen, since)
            else:
                files = [adapter.file for adapter in chosen]
                self.linking = Link(self._linker.submit(self._link, files), chosen, since)
        return None

    def _outgrows(self, adapter: Adapter) -> bool:
        layout = self.current.linked.layout
        return self.operator is not None and not (layout and layout.holds(adapter.ranks))

    def _swap(self, link: Link) -> Change:
        self.linking = None
        try:
            linked = link.linked.result()
        except (OSError, LoraplexError) as error:
            logger.error("adapters cannot be linked: %s", error)
            # With the operator no file of an adapter was read.
            read = () if self.operator else link.adapters
            broken = frozenset(adapter for adapter in read if not is_adapter(adapter.file))
            self._broken |= broken
            return Change([], broken or self._give_up(link, RETRY_SECONDS), str(error))
        since = time.monotonic()
        moving: list[Running] = []
        adapters = () if self.operator else link.adapters
        try:
            engine = self._load(linked, adapters)
            self.draining = self.current
            self.draining.stop_warm_up()
        except RuntimeError as error:
            logger.warning("no room for a second engine, running sequences move: %s", error)
            moving = self.current.take_all()
            if changed := sum(each.movable and each.promised for each in moving):
                logger.warning("%d answers with a seed go on with other tokens than they would have had", changed)
            before, slots = self.current.linked, () if self.operator else self.current.slots.adapters
            del self.current
            try:
                engine = self._load(linked, adapters)
            except RuntimeError as error:
                # So it was not the old engine's memory: the folder is damaged, or too much for this GPU by itself.
                logger.error("the linked model cannot be loaded, the one before goes on: %s", error)
                _discard(linked)
                self.current = self._load(before, slots)
                self.changed = time.monotonic()
                self._failures = self._failures + 1 if link.adapters == self._hopeless else 0
                return Change(moving, self._give_up(link, RETRY_SECONDS * 2**self._failures), str(error))
            trim(self._cache)
        self.current = engine
        self._failures = 0
        self._outgrown = {adapter for adapter in self._outgrown if self._outgrows(adapter)}
        self.changed = time.monotonic()
        logger.info(
            "%d adapters linked in %.2f s, engine loaded in %.2f s",
            len(link.adapters),
            since - link.since,
            self.changed - since,
        )
        return Change(moving)

    def _give_up(self, link: Link, seconds: float) -> frozenset[Adapter]:
        """Leave alone for a while what would fail again at once; the adapters whose requests are not to wait for it."""
        self._hopeless, self._again = link.adapters, time.monotonic() + seconds
        # With the operator the engine at hand has room for the others.
        outgrown = frozenset(filter(self._outgrows, link.adapters))
        return outgrown or frozenset(link.adapters) - set(self.current.slots.adapters)

    def _base(self) -> Path:
        """The folder to link; an expanded one may have been damaged or deleted since the last time."""
        if self._expansion is None:
            return self._folder
        self._expanded = self._expansion()
        return self._expanded.folder

    def _link(self, files: Sequence[Path]) -> Linked:
        return link(self._base(), files, self._cache)

    def _link_slots(self, ranks: dict[str, int]) -> Linked:
        if not ranks or self.operator is None:
            return self._link([])
        return link_slots(self._base(), ranks, self.places, self._cache, self.operator)

    def _load(self, linked: Linked, adapters: Sequence[Adapter]) -> RoutedEngine:
        try:
            engine = RoutedEngine(linked, adapters, self._device, self._threads, self._options)
        except (OSError, ValueError, LookupError) as error:
            raise RuntimeError(f"{linked.folder / CONFIG} cannot be read: {error}") from None
        engine.slots.pinned = self._pinned
        return engine


def _discard(linked: Linked) -> None:
    if linked.held:
        discard(linked.held)
