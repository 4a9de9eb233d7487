"""Imports of the large libraries, without the garbage collector.

What they make while they are imported is hundreds of thousands of objects that stay. The collector would look through
them again and again, which takes a fifth of the time of the imports.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector from running in this block, for imports."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
