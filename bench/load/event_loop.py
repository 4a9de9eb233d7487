"""The event loop that a client runs on: the fastest that there is, because the client must not be the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[None, None, Result]) -> Result:
    """Run to the end, on uvloop where it is to be had."""
    try:
        import uvloop
    except ImportError:  # it is not for Windows
        return asyncio.run(work)
    return uvloop.run(work)
