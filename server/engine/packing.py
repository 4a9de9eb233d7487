"""Adapters packed for the fused operator in host memory, by a thread: no step waits for files and transposes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.bank import AdapterWeights
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.slots import Adapter
from loraplex.server.machine import available_memory

SHARE = 0.25
"""Of the memory that is available at the start, what packed adapters may take."""

Packed = npt.NDArray[np.float16]


class Packer:
    """Keeps what was packed last. Owned by one thread."""

    def __init__(self, most_bytes: int = 0) -> None:
        """`most_bytes` bounds what is kept; 0 is SHARE of the available memory."""
        self._most_bytes = most_bytes or int(SHARE * available_memory())
        self._packed: OrderedDict[Adapter, tuple[Layout, Future[Packed]]] = OrderedDict()
        self._spare: Packed | None = None
        self._forgotten: list[Future[Packed]] = []
        self._ending: list[Packed] = []
        """Memory is freed between two steps only (`Bank.allocate`), and so not by the thread that packed into it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="packer")

    @property
    def pending(self) -> list[Future[Packed]]:
        return [future for _, future in self._packed.values() if not future.done()]

    def get(self, adapter: Adapter, layout: Layout, allocate: Callable[[], Packed]) -> Packed | None:
        """An adapter by a layout that holds it; None until the thread has packed it, into memory from `allocate`.

        Raises AdapterInvalid where its file cannot be read.
        """
        known, future = self._packed.get(adapter, (None, None))
        if future is None or known != layout:
            self.forget(adapter)
            if self._full(layout):
                self._drop_oldest()
            future = self._pack(adapter, layout, allocate)
        self._packed.move_to_end(adapter)
        if not future.done():
            return None
        try:
            return future.result()
        except BaseException:
            del self._packed[adapter]
            raise

    def prepare(self, adapter: Adapter, layout: Layout, allocate: Callable[[], Packed]) -> None:
        """Pack an adapter that may be wanted soon, where there is room for it."""
        self._free()
        if adapter not in self._packed and not self._full(layout):
            self._pack(adapter, layout, allocate)

    def forget(self, adapter: Adapter) -> Future[None] | None:
        """What is done when its file is read no more; None where that is so now."""
        self._free()
        _, future = self._packed.pop(adapter, (None, None))
        if future is None:
            return None
        # Not cancelled, even if it could be: its memory would be freed by the thread.
        self._forgotten.append(future)
        if future.done():
            return None
        read: Future[None] = Future()
        future.add_done_callback(lambda _: read.set_result(None))
        return read

    def _free(self) -> None:
        """Free what was packed for nobody, a call later: until then the thread may hold on to it."""
        done = [future for future in self._forgotten if future.done()]
        self._ending = [future.result() for future in done if future.exception() is None]
        self._forgotten = [future for future in self._forgotten if future not in done]

    def _full(self, layout: Layout) -> bool:
        return len(self._packed) >= max(2, self._most_bytes // layout.slot_bytes)

    def _drop_oldest(self) -> None:
        """Its memory serves the next one. What is still being packed stays."""
        oldest = next((each for each, (_, future) in self._packed.items() if future.done()), None)
        if oldest and (future := self._packed.pop(oldest)[1]).exception() is None:
            self._spare = future.result()

    def _pack(self, adapter: Adapter, layout: Layout, allocate: Callable[[], Packed]) -> Future[Packed]:
        spare, self._spare = self._spare, None
        memory = spare if spare is not None and spare.nbytes == layout.slot_bytes else allocate()
        future = self._thread.submit(_pack, adapter, layout, memory)
        self._packed[adapter] = layout, future
        return future


def _pack(adapter: Adapter, layout: Layout, memory: Packed) -> Packed:
    if not layout.holds(adapter.ranks):
        raise RuntimeError(f"the graph has no room for adapter {adapter.name}")
    layout.pack(AdapterWeights(adapter.file), memory)
    return memory
