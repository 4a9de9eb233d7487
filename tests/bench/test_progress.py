"""What the terminal shows while a run goes on."""

from __future__ import annotations

import asyncio
import io
import time

from rich.console import Console

from loraplex.bench.load import progress
from loraplex.bench.load.driver import Tally


async def test_the_table_follows_the_run() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    tally = Tally(total=10, done=4, failed=1, running=3, chunks=500, ttfts=[0.2, 0.3, 0.4], began=time.perf_counter())
    async with progress.shown(tally, console):
        await _until(screen, "4/10")
        tally.done = 9
        await _until(screen, "9/10")
    assert "300.0 ms" in screen.getvalue()


async def test_nothing_is_shown_where_nobody_looks() -> None:
    screen = io.StringIO()
    async with progress.shown(Tally(), Console(file=screen, force_terminal=False)):
        pass
    assert screen.getvalue() == ""


async def _until(screen: io.StringIO, text: str) -> None:
    for _ in range(6000):
        if text in screen.getvalue():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{text} is not shown: {screen.getvalue()}")
