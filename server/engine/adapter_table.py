"""Adapters as the compiled operator of `kernels/linear.cpp` takes them: in 8 bits, with a table of where they lie.

However many rows share an adapter, its weights are there once. A step of rows under different adapters waits for these
to be read, which is why they have 8 bits; blocks with a scale of their own keep them closer to what they were than the
operator's 8-bit activations and 4-bit base are.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.row_adapters import Adapter, Weights

Bytes = npt.NDArray[np.int8]

Sides = tuple[Weights, Weights]
"""A [in_features, rank] and B [rank, out_features]."""
RANKS = 8
"""Ranks that lie together; a rank is filled up to a multiple."""
BLOCK_A, BLOCK_B = 128, 16
"""Values along in_features that share a scale, for each rank; values along out_features, for all ranks together."""
LARGEST = 127
ALIGNMENT, HUGE_PAGE = 64, 2**21
FLOAT = np.dtype(np.float32).itemsize


class AdapterTables:
    """The tables of adapters for the projections of one graph."""

    def __init__(self, layers: Sequence[Sequence[str]]) -> None:
        """`layers` are the projections of each node, in the order that the nodes run."""
        self._layers = layers
        self._tables: weakref.WeakKeyDictionary[Adapter, AdapterTable] = weakref.WeakKeyDictionary()

    def __bool__(self) -> bool:
        return bool(self._layers)

    def prepare(self, adapter: Adapter) -> AdapterTable:
        """Take over the adapter's weights, if that has not been done."""
        if adapter not in self._tables:
            layers = [[adapter.take(projection) for projection in layer] for layer in self._layers]
            self._tables[adapter] = AdapterTable(layers)
        return self._tables[adapter]

    def addresses(self, rows: Sequence[Adapter | None]) -> npt.NDArray[np.int64]:
        """Of each row's table, 0 for the base. They are good for as long as the adapters live."""
        return np.array([0 if row is None else self.prepare(row).entries.ctypes.data for row in rows], np.int64)


class AdapterTable:
    """One adapter: `entries` [projections + 1, 5] are the addresses of A, its scales, B's scales and B, and the rank.

    What a layer reads first, all of its projections' A and scales, lies together, its B behind that, and then the next
    layer, so that what is wanted next can be asked for as one piece. The last entry is where the memory ends.
    """

    def __init__(self, layers: Sequence[Sequence[Sides | None]]) -> None:
        """A and B of each layer's projections; None where there are none."""
        projections = [sides for layer in layers for sides in layer]
        sizes = [_sizes(sides) for sides in projections]
        self.entries = np.zeros((len(projections) + 1, 5), np.int64)
        places, end, first = self.entries[:, :4], 0, 0
        for layer in layers:
            within = range(first, first + len(layer))
            for index, part in [(i, part) for i in within for part in range(3)] + [(i, 3) for i in within]:
                places[index, part] = end
                end += -(-sizes[index][part] // ALIGNMENT) * ALIGNMENT
            first += len(layer)
        places[-1] = end
        self._memory = memory = _allocate(end)
        for index, sides in enumerate(projections):
            if sides is not None and sides[0].size:
                starts = zip(places[index], sizes[index], strict=True)
                _write(sides, *(memory[start : start + size] for start, size in starts))
                self.entries[index, 4] = _filled(sides[0].shape[1])
        places += memory.ctypes.data


def _allocate(size: int) -> Bytes:
    """In huge pages, which are read faster, where there is enough to fill some."""
    # One huge page more than is needed, so that the first one can begin where it must; untouched, it costs nothing.
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= 2 * HUGE_PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.int8)
    return whole[-whole.ctypes.data % HUGE_PAGE :]


def _filled(rank: int) -> int:
    return -(-rank // RANKS) * RANKS


def _sizes(sides: Sides | None) -> tuple[int, int, int, int]:
    """Bytes of A, of its scales, of B's scales and of B."""
    if sides is None:
        return 0, 0, 0, 0
    (rows, rank), columns = sides[0].shape, sides[1].shape[1]
    rank = _filled(rank)
    return rows * rank, -(-rows // BLOCK_A) * rank * FLOAT, columns // BLOCK_B * FLOAT, columns * rank


def _write(sides: Sides, values_a: Bytes, scales_a: Bytes, scales_b: Bytes, values_b: Bytes) -> None:
    """Each rank's B is brought to the size of the others, and its A takes it over, so that ranks can share scales."""
    a, b = sides
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        largest = np.abs(b).max(1)
        b = np.nan_to_num(b / largest[:, None], posinf=0, neginf=0)
        a = a * largest
    _write_a(a, values_a, scales_a.view(np.float32))
    _write_b(b, values_b, scales_b.view(np.float32))


def _write_a(a: Weights, values: Bytes, scales: Weights) -> None:
    """[in_features, rank] as [rank / 8, in_features / 8, 8 ranks, 8 in_features], scales as [blocks, rank]."""
    rows, rank = a.shape
    a = np.pad(a, ((0, 0), (0, _filled(rank) - rank)))
    quantized = _quantize(a, BLOCK_A, scales.reshape(-1, a.shape[1]))
    values.reshape(-1, rows // 8, RANKS, 8)[...] = quantized.reshape(rows // 8, 8, -1, RANKS).transpose(2, 0, 3, 1)


def _write_b(b: Weights, values: Bytes, scales: Weights) -> None:
    """[rank, out_features] as [blocks, rank / 2, BLOCK_B, 2], scales as [blocks]."""
    rank = _filled(b.shape[0])
    b = np.pad(b, ((0, rank - b.shape[0]), (0, 0)))
    blocks = b.reshape(rank // 2, 2, len(scales), BLOCK_B).transpose(2, 0, 3, 1).reshape(len(scales), -1)
    quantized = _quantize(blocks.T, blocks.shape[1], scales[None])
    values.reshape(blocks.shape)[...] = quantized.T


def _quantize(weights: Weights, block: int, scales: Weights) -> npt.NDArray[Any]:
    """Whole numbers of at most LARGEST for weights [values, columns]; writes a scale for each `block` and column.

    What is not finite makes its scale so too, and the answer, which the lane then refuses.
    """
    starts = np.arange(0, len(weights), block)
    largest = np.maximum.reduceat(weights, starts)
    np.maximum(largest, -np.minimum.reduceat(weights, starts), out=largest)
    np.divide(largest, LARGEST, out=scales)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.nan_to_num(np.float32(LARGEST) / largest, posinf=0)
        inverse = np.repeat(inverse, block, axis=0)[: len(weights)]
        return np.rint(weights * inverse).astype(np.int8)
