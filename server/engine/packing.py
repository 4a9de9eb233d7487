"""Adapters packed for the fused operator in host memory, by a thread: no step waits for files and transposes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import psutil

from loraplex.server.engine.bank import AdapterWeights
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.slots import Adapter

SHARE = 0.25
"""Of the memory that is available at the start, what packed adapters may take."""

Packed = npt.NDArray[np.float16]


class Packer:
    """Keeps what was packed last. Owned by one thread."""

    def __init__(self, most_bytes: int = 0) -> None:
        """`most_bytes` bounds what is kept; 0 is SHARE of the available memory."""
        self._most_bytes = most_bytes or int(SHARE * psutil.virtual_memory().available)
        self._packed: OrderedDict[Adapter, tuple[Layout, Future[Packed]]] = OrderedDict()
        self._spare: Packed | None = None
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
            self._packed.pop(adapter, None)
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
        if adapter not in self._packed and not self._full(layout):
            self._pack(adapter, layout, allocate)

    def forget(self, adapter: Adapter) -> None:
        self._packed.pop(adapter, None)

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
