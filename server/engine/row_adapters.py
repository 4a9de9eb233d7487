"""The adapters of a step's rows, as the graph takes them.

`RowAdapters` feeds the LoRA inputs of `row_graph`; where layers are nodes of the compiled operator, `adapter_table`
takes its place. Rows that all run under one adapter share its weights, bound where they lie. Different adapters are
stacked: every row has a slice of its own, padded with zeros to the highest rank among them, which is written when
another adapter comes to that row and then stays. A step reads each row's slice once; nothing is copied for it.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import AdapterFormat

from loraplex.server.engine.kv_cache import allocate
from loraplex.server.engine.row_graph import LORA
from loraplex.server.errors import AdapterInvalid

Weights = npt.NDArray[np.float32]

SLICES = 8
"""Room for so many rows at least, so that a stack need not grow, and be written anew, whenever a row joins."""


class Adapter:
    """One loaded adapter. The identity of the object, not the name, tells a replaced adapter from its successor."""

    def __init__(self, name: str, path: Path) -> None:
        """Map the file; raises AdapterInvalid."""
        self.name = name
        try:
            values = AdapterFormat.read_adapter(str(path)).get_parameters()
        except (RuntimeError, ValueError) as error:  # ValueError of names that are no UTF-8
            raise AdapterInvalid(f"adapter {name!r}: {error}") from None
        self._owners = dict(values)
        self.weights: dict[str, Weights] = {tensor: _view(value) for tensor, value in values.items()}
        """A [in_features, rank] and B [rank, out_features], float32, by the name of the graph input."""

    def rank(self, projection: str) -> int:
        """0 where the adapter leaves the projection alone."""
        a = self.weights.get(f"{projection}{LORA}A.weight")
        return 0 if a is None else a.shape[1]

    def take(self, projection: str) -> tuple[Weights, Weights] | None:
        """A and B of a projection, which the adapter has no longer; None where it leaves the projection alone."""
        names = [f"{projection}{LORA}{side}.weight" for side in "AB"]
        if names[0] not in self.weights:
            return None
        a, b = (self.weights.pop(name).copy() for name in names)
        for name in names:
            del self._owners[name]
        return a, b


class RowAdapters:
    """Binds the LoRA inputs of one session. `inputs` are (in_features, out_features) by projection prefix."""

    def __init__(self, inputs: dict[str, tuple[int, int]]) -> None:
        self._inputs = inputs
        self._none = np.empty(0, np.float32)
        self._slices: list[Adapter | None] = []
        self._written: list[bool] = []
        self._ranks: dict[str, int] = {}
        self._stack: dict[str, Weights] = {}
        self._memory: mmap.mmap | None = None

    def bind(self, binding: Any, rows: Sequence[Adapter | None]) -> None:
        """Bind an onnxruntime IOBinding's LoRA inputs for rows under these adapters; None is the base."""
        if not self._inputs:
            return
        first = rows[0]
        if all(row is first for row in rows):
            self._bind_shared(binding, first)
        else:
            self._fill(rows)
            for name, stack in self._stack.items():
                _bind(binding, name, stack.ctypes.data, (len(rows), *stack.shape[1:]))

    def release(self) -> bool:
        """Give the stack's memory back; whether there was one, which must not be run with any more."""
        had = bool(self._stack)
        self._stack, self._ranks, self._slices, self._written, self._memory = {}, {}, [], [], None
        return had

    def _bind_shared(self, binding: Any, adapter: Adapter | None) -> None:
        for projection, (rows, columns) in self._inputs.items():
            for side in "AB":
                name = f"{projection}{LORA}{side}.weight"
                weight = adapter.weights.get(name) if adapter else None
                if weight is not None:
                    _bind(binding, name, weight.ctypes.data, (1, *weight.shape))
                else:
                    _bind(binding, name, self._none.ctypes.data, (1, rows, 0) if side == "A" else (1, 0, columns))

    def _fill(self, rows: Sequence[Adapter | None]) -> None:
        adapters = {id(row): row for row in rows if row is not None}.values()
        ranks = {projection: max(a.rank(projection) for a in adapters) for projection in self._inputs}
        fits = len(rows) <= len(self._slices) and all(ranks[p] <= self._ranks[p] for p in ranks)
        if not fits or 2 * self._size(ranks) < self._size(self._ranks):
            self._allocate(ranks, max(SLICES, 1 << (len(rows) - 1).bit_length()))
        for index, row in enumerate(rows):
            if not self._written[index] or self._slices[index] is not row:
                self._write(index, row)

    def _size(self, ranks: dict[str, int]) -> int:
        return sum(rank * sum(self._inputs[projection]) for projection, rank in ranks.items())

    def _allocate(self, ranks: dict[str, int], slices: int) -> None:
        self.release()  # the old stack before the new one
        self._ranks, self._slices, self._written = ranks, [None] * slices, [False] * slices
        # A slice takes memory when it is written, so that there may be more of them than rows; and one block, because
        # the C library keeps many small ones for itself when they are freed.
        self._memory, block = allocate((max(1, slices * self._size(ranks)),))
        start = 0
        for projection, (rows, columns) in self._inputs.items():
            for side, shape in (("A", (slices, rows, ranks[projection])), ("B", (slices, ranks[projection], columns))):
                end = start + math.prod(shape)
                self._stack[f"{projection}{LORA}{side}.weight"] = block[start:end].reshape(shape)
                start = end

    def _write(self, index: int, adapter: Adapter | None) -> None:
        for name, stack in self._stack.items():
            target = stack[index]
            weight = adapter.weights.get(name) if adapter else None
            if weight is None:
                target[...] = 0
            else:
                rows, columns = weight.shape
                target[:rows, :columns] = weight
                target[rows:] = 0
                target[:, columns:] = 0
        self._slices[index], self._written[index] = adapter, True


def _bind(binding: Any, name: str, address: int, shape: tuple[int, ...]) -> None:
    binding.bind_input(name, "cpu", 0, np.float32, shape, address)


def _view(value: Any) -> Weights:
    """The tensor without a copy: OrtValue.numpy() makes one. The OrtValue must outlive the view."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if not count:
        return np.empty(shape, np.float32)
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(value.data_ptr())).reshape(shape)
