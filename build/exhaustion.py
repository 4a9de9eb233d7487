"""Tells from an exception whether a disk or memory was exhausted, whichever library met with it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
"""What libraries in C++ and Rust pass on of the system's error."""
_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to allocate memory",
    "failed to map segment",
)


def disk_full(error: BaseException | None) -> bool:
    return any(
        (isinstance(each, OSError) and each.errno in _FULL) or _says(each, _FULL_WORDS) for each in _chain(error)
    )


def out_of_memory(error: BaseException | None) -> bool:
    """Of this process or of a GPU."""
    return any(
        isinstance(each, MemoryError) or "OutOfMemory" in type(each).__name__ or _says(each, _MEMORY_WORDS)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(each in text for each in words)
