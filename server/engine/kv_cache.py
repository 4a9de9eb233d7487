"""Keys and values of the rows, in the layout that GroupQueryAttention reads and extends in place.

Per layer and part there is one buffer [rows, kv_heads, length, head_size], bound as past and as present. It is address
space, mostly: memory is taken page by page as tokens are written and given back when a row is released, so that rows of
different lengths cost what they hold. Rows and length grow in powers of two.
"""

from __future__ import annotations

import mmap
import platform
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.float32]
Tokens = list[npt.NDArray[np.float32]]
"""Keys and values of some tokens, [kv_heads, tokens, head_size] per buffer."""

SHORTEST = 256
"""Tokens; every row's part of a buffer is then a whole number of memory pages."""
FLOAT32 = np.dtype(np.float32).itemsize
NORESERVE: int = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
)
"""Linux's MAP_NORESERVE, which Python names from 3.13 on."""


class Part(NamedTuple):
    """One buffer's graph input and output, and its shape."""

    past: str
    present: str
    kv_heads: int
    head_size: int


class KvCache:
    """KV of up to `rows` rows of up to `length` tokens; `reserve` raises both."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.token_bytes = sum(part.kv_heads * part.head_size for part in parts) * FLOAT32
        self.rows = 0
        self.length = 0
        self._buffers: list[Buffer] = []
        self._maps: list[mmap.mmap] = []

    def reserve(self, rows: int, length: int, held: Sequence[int] = ()) -> bool:
        """Make room for so many rows of so many tokens, keeping the first held[i] tokens of row i.

        Returns whether the buffers are others than before, and so must be bound anew. Raises OSError, and all is as it
        was, where there is no memory for them.
        """
        if rows <= self.rows and length <= self.length:
            return False
        rows = max(self.rows, 1 << (rows - 1).bit_length())
        length = max(self.length, SHORTEST, 1 << (length - 1).bit_length())
        new = [allocate((rows, part.kv_heads, length, part.head_size)) for part in self._parts]
        self.rows, self.length = rows, length
        for index, (memory, buffer) in enumerate(new):
            if index < len(self._buffers):
                for row, tokens in enumerate(held):
                    if tokens:
                        buffer[row, :, :tokens] = self._buffers[index][row, :, :tokens]
                self._buffers[index], self._maps[index] = buffer, memory  # each old one goes before the next is filled
            else:
                self._buffers.append(buffer)
                self._maps.append(memory)
        return True

    def bind(self, binding: Any, first: int, rows: int) -> None:
        """Bind rows first .. first + rows of every buffer to an onnxruntime IOBinding, as past and present."""
        for part, buffer in zip(self._parts, self._buffers, strict=True):
            view = buffer[first : first + rows]
            binding.bind_input(part.past, "cpu", 0, np.float32, view.shape, view.ctypes.data)
            binding.bind_output(part.present, "cpu", 0, np.float32, view.shape, view.ctypes.data)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one row to another."""
        for buffer in self._buffers:
            buffer[target, :, :tokens] = buffer[source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first tokens of two rows."""
        for buffer in self._buffers:
            kept = buffer[one, :, :tokens].copy()
            buffer[one, :, :tokens] = buffer[other, :, :tokens]
            buffer[other, :, :tokens] = kept

    def read(self, row: int, tokens: int) -> Tokens:
        """A copy of the first tokens of a row."""
        return [buffer[row, :, :tokens].copy() for buffer in self._buffers]

    def write(self, row: int, source: Tokens, tokens: int) -> None:
        """Put the first of some tokens that were read into a row."""
        for buffer, values in zip(self._buffers, source, strict=True):
            buffer[row, :, :tokens] = values[:, :tokens]

    def release(self, row: int) -> None:
        """Give back the memory of one row, if there is any."""
        if row >= self.rows or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for memory, buffer in zip(self._maps, self._buffers, strict=True):
            memory.madvise(mmap.MADV_DONTNEED, row * buffer.strides[0], buffer.strides[0])

    def release_all(self) -> bool:
        """Give back the memory of every row; whether the buffers are still the same, so that they need not be bound."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED)
            return True
        self._buffers, self._maps, self.rows, self.length = [], [], 0, 0
        return False


def allocate(shape: tuple[int, ...]) -> tuple[mmap.mmap, Buffer]:
    """Zeros that take memory when they are written. Not np.zeros: numpy asks for huge pages, which take 2 MB each.

    Private memory: of shared memory, which mmap makes by default, the kernel gets nothing back before it is unmapped.
    """
    size = int(np.prod(shape)) * FLOAT32
    if hasattr(mmap, "MAP_PRIVATE"):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    else:
        memory = mmap.mmap(-1, size)
    return memory, np.frombuffer(memory, np.float32).reshape(shape)
