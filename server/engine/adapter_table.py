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

RANKS = 8
"""Ranks that lie together; a rank is filled up to a multiple."""
BLOCK_A, BLOCK_B = 128, 64
"""Values along in_features, and along out_features, that share a scale."""
LARGEST = 127
ALIGNMENT, HUGE_PAGE = 64, 2**21
FLOAT = np.dtype(np.float32).itemsize


class AdapterTables:
    """The tables of adapters for the projections of one graph."""

    def __init__(self, projections: Sequence[str]) -> None:
        self._projections = projections
        self._tables: weakref.WeakKeyDictionary[Adapter, AdapterTable] = weakref.WeakKeyDictionary()

    def __bool__(self) -> bool:
        return bool(self._projections)

    def prepare(self, adapter: Adapter) -> AdapterTable:
        """Take over the adapter's weights, if that has not been done."""
        if adapter not in self._tables:
            self._tables[adapter] = AdapterTable([adapter.take(projection) for projection in self._projections])
        return self._tables[adapter]

    def addresses(self, rows: Sequence[Adapter | None]) -> npt.NDArray[np.int64]:
        """Of each row's table, 0 for the base. They are good for as long as the adapters live."""
        return np.array([0 if row is None else self.prepare(row).entries.ctypes.data for row in rows], np.int64)


class AdapterTable:
    """One adapter: `entries` [projections, 4] are the addresses of A, of its scales and of B, and the rank."""

    def __init__(self, projections: Sequence[tuple[Weights, Weights] | None]) -> None:
        """A [in_features, rank] and B [rank, out_features] of each projection; None where there are none."""
        self.entries = np.zeros((len(projections), 4), np.int64)
        wanted = [(index, *sides) for index, sides in enumerate(projections) if sides is not None and sides[0].size]
        sizes = [size for _, a, b in wanted for size in _sizes(a, b)]
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
        memory = _allocate(int(starts[-1]))
        self._memory = memory
        parts = iter([memory[start : start + size] for start, size in zip(starts[:-1], sizes, strict=True)])
        for index, a, b in wanted:
            values_a, scales_a, of_b = (next(parts) for _ in range(3))
            _write_a(a, values_a, scales_a.view(np.float32))
            _write_b(b, of_b)
            self.entries[index] = *(part.ctypes.data for part in (values_a, scales_a, of_b)), _filled(a.shape[1])


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


def _sizes(a: Weights, b: Weights) -> list[int]:
    """Bytes of A, of its scales and of B with its."""
    (rows, rank), columns = a.shape, b.shape[1]
    rank = _filled(rank)
    return [rows * rank, -(-rows // BLOCK_A) * rank * FLOAT, rank * (columns + -(-columns // BLOCK_B) * FLOAT)]


def _write_a(a: Weights, values: Bytes, scales: Weights) -> None:
    """[in_features, rank] as [rank / 8, in_features / 8, 8 ranks, 8 in_features], scales as [blocks, rank]."""
    rows, rank = a.shape
    a = np.pad(a, ((0, 0), (0, _filled(rank) - rank)))
    quantized = _quantize(a, BLOCK_A, scales.reshape(-1, a.shape[1]))
    values.reshape(-1, rows // 8, RANKS, 8)[...] = quantized.reshape(rows // 8, 8, -1, RANKS).transpose(2, 0, 3, 1)


def _write_b(b: Weights, target: Bytes) -> None:
    """[rank, out_features] as blocks of columns, each the scales [rank] and then [rank, columns]."""
    rank, columns = _filled(b.shape[0]), b.shape[1]
    b = np.pad(b, ((0, rank - b.shape[0]), (0, 0)))
    scales = np.empty((-(-columns // BLOCK_B), rank), np.float32)
    quantized = _quantize(b.T, BLOCK_B, scales).T
    scale_bytes = scales.view(np.int8)
    whole, size = columns // BLOCK_B, rank * (FLOAT + BLOCK_B)
    blocks = target[: whole * size].reshape(whole, size)
    blocks[:, : rank * FLOAT] = scale_bytes[:whole]
    values = quantized[:, : whole * BLOCK_B].reshape(rank, whole, BLOCK_B).transpose(1, 0, 2)
    blocks[:, rank * FLOAT :] = values.reshape(whole, rank * BLOCK_B)
    if columns % BLOCK_B:
        rest = target[blocks.size :]
        rest[: rank * FLOAT] = scale_bytes[whole]
        rest[rank * FLOAT :].reshape(rank, -1)[...] = quantized[:, whole * BLOCK_B :]


def _quantize(weights: Weights, block: int, scales: Weights) -> npt.NDArray[Any]:
    """Whole numbers of at most LARGEST for weights [values, rank]; writes a scale for each `block` of values and rank.

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
