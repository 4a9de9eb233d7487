"""The routed lane: all sequences in one batch, whatever their adapters, on the stock og.Engine.

The adapters are part of the graph (`linker`, `routing`), so a change of the set of adapters is a change of engines. The
new model folder is linked by a thread while traffic goes on; its engine is then loaded beside the old one, takes every
sequence from then on, and the old one runs dry and is freed. Loading happens between two steps and not in a thread,
because CUDA forbids allocations anywhere in the process while a CUDA graph is being captured. Where memory does not
hold two engines, the running sequences move over with what they have generated.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.linker import Linked, link, trim
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.residency import choose
from loraplex.server.engine.routed_engine import UNSUPPORTED, EngineOptions, RoutedEngine, Sequence
from loraplex.server.errors import BundleInvalid, LoraplexError

logger = logging.getLogger("loraplex.routed")

KERNELS = Path(__file__).parent / "kernels" / "liblora.so"
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
        max_linked: int = 32,
        drain_seconds: float = 5.0,
        kernels: Path = KERNELS,
        fallback: Lane | None = None,
    ) -> None:
        """Load the base found in `folder`: a bundle's paged variant on "cuda", its generator variant on "cpu".

        `cache` takes linked folders and should lie on the file system of `folder`, so that weights can be hard-linked.
        Of the adapters at most `max_linked` are in the graph at a time. While requests wait for an adapter that is
        not, an old engine gets `drain_seconds` to run dry before its sequences move to the new one. `fallback` is a
        lane over the same base that takes what this one cannot do, and requests for adapters that are not linked yet.
        `kernels` is the compiled operator of `fused`, used on CUDA where the file exists.

        Raises BundleInvalid.
        """
        self.device = device
        self.unsupported = UNSUPPORTED & fallback.unsupported if fallback else UNSUPPORTED
        self._folder = folder
        self._cache = cache
        self._threads = threads
        self._options = options or EngineOptions()
        self._max_linked = max_linked
        self._drain_seconds = drain_seconds
        self._fallback = fallback
        self._files: dict[str, Path] = {}
        self._used: dict[str, int] = {}
        self._clock = itertools.count(1)
        self._waiting: deque[Sequence] = deque()
        self._ended: list[Output] = []
        self._kernels = kernels if device == "cuda" and kernels.is_file() else None
        self._linker = ThreadPoolExecutor(1, thread_name_prefix="linker")
        self._linking: Future[Linked] | None = None
        self._linking_files: dict[str, Path] = {}
        self._hopeless: tuple[str, ...] = ()
        try:
            self._engine = self._load(link(folder, {}, cache), {})
        except (OSError, RuntimeError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        self._draining: RoutedEngine | None = None
        self._swapped = time.monotonic()

    @property
    def busy(self) -> bool:
        return bool(
            self._ended
            or self._engine.running
            or self._draining
            or self._linking
            or self._next_set()
            or (self._fallback and self._fallback.busy)
        )

    @property
    def linked(self) -> set[str]:
        """The adapters whose requests start at once."""
        return {name for name, file in self._engine.files.items() if self._files.get(name) == file}

    def submit(self, request: Submit) -> None:
        if error := self._refusal(request):
            self._ended.append(Output(request.sequence, [], error=error))
            return
        if request.adapter is not None:
            self._used[request.adapter] = next(self._clock)
        cold = request.adapter is not None and request.adapter not in self.linked
        if self._fallback and (cold or RoutedEngine.cannot(request)):
            self._fallback.submit(request)
        else:
            self._begin(Sequence(request))

    def step(self) -> list[Output]:
        self._change_adapters()
        outputs, self._ended = self._ended, []
        for engine in (self._draining, self._engine):
            if engine and engine.running:
                outputs += engine.run()
        if self._fallback and self._fallback.busy:
            outputs += self._fallback.step()
        if not outputs and self._linking and not self._engine.running:
            wait([self._linking], IDLE_WAIT)
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
        if self._fallback:
            self._fallback.load_adapter(name, folder, manifest)
        self._files[name] = folder / manifest.file
        self._used[name] = next(self._clock)
        self._hopeless = ()

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter: sequences that run go on, those that wait end with an error. Unknown ones are ignored."""
        self._files.pop(name, None)
        self._used.pop(name, None)
        self._fail_waiting({name}, f"adapter {name!r} was unloaded")

    def _refusal(self, request: Submit) -> str | None:
        """Why a request cannot run. og.Engine checks no ids, and one beyond the vocabulary would choose an adapter."""
        if request.adapter is not None and request.adapter not in self._files:
            return f"there is no adapter {request.adapter!r}"
        if not request.prompt or not all(0 <= token < self._engine.linked.vocab_size for token in request.prompt):
            return "the prompt is empty or has token ids out of range"
        if not self._fallback and (unknown := RoutedEngine.cannot(request)):
            return f"the routed engine has no {unknown}"
        return None

    def _begin(self, sequence: Sequence) -> None:
        adapter = sequence.request.adapter
        if adapter is not None and adapter not in self.linked:
            self._waiting.append(sequence)
            return
        try:
            self._engine.begin(sequence)
        except RuntimeError as error:
            self._ended.append(Output(sequence.request.sequence, [], error=str(error)))

    def _next_set(self) -> tuple[str, ...] | None:
        wanted = (sequence.request.adapter or "" for sequence in self._waiting)
        names = choose(self._used, self.linked, wanted, self._max_linked)
        return names if names != self._hopeless else None

    def _change_adapters(self) -> None:
        """Carry the change of adapters forward by what can be done now; one change at a time."""
        if self._linking:
            if self._linking.done():
                self._swap(self._linking)
            return
        if self._draining:
            if not self._draining.running:
                self._draining = None
                trim(self._cache, keep=self._engine.linked.folder)
            elif self._waiting and time.monotonic() - self._swapped > self._drain_seconds:
                self._move(self._draining.take_all())
            return
        if names := self._next_set():
            self._linking_files = {name: self._files[name] for name in names}
            self._linking = self._linker.submit(link, self._folder, self._linking_files, self._cache, self._kernels)

    def _swap(self, linking: Future[Linked]) -> None:
        self._linking = None
        try:
            linked = linking.result()
        except (OSError, LoraplexError) as error:
            # The same set would fail again; a change of the adapters makes it another one.
            logger.error("adapters cannot be linked: %s", error)
            self._hopeless = tuple(sorted(self._linking_files))
            self._fail_waiting(set(self._linking_files), f"the adapter cannot be linked: {error}")
            return
        moving: list[Sequence] = []
        try:
            engine = self._load(linked, self._linking_files)
            self._draining = self._engine
        except RuntimeError as error:
            logger.warning("no room for a second engine, running sequences move: %s", error)
            moving = self._engine.take_all()
            del self._engine
            engine = self._load(linked, self._linking_files)
        self._engine = engine
        self._swapped = time.monotonic()
        self._move(moving)

    def _move(self, sequences: list[Sequence]) -> None:
        """Begin or go on with these sequences and those that wait, or let them wait."""
        waiting, self._waiting = self._waiting, deque()
        for sequence in (*sequences, *waiting):
            self._begin(sequence)

    def _fail_waiting(self, adapters: set[str], error: str) -> None:
        failing = [sequence for sequence in self._waiting if sequence.request.adapter in adapters]
        self._ended += [Output(sequence.request.sequence, [], error=error) for sequence in failing]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request.adapter not in adapters)

    def _load(self, linked: Linked, files: dict[str, Path]) -> RoutedEngine:
        return RoutedEngine(linked, files, self.device, self._threads, self._options)
