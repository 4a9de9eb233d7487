"""The table on the terminal while a run goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

from rich.console import Console
from rich.live import Live
from rich.table import Table

from loraplex.bench.load.driver import Tally

PERIOD_SECONDS = 0.5
"""Drawing costs the client some milliseconds of its core each time."""
RECENT = 500
"""Requests that the TTFT is shown of."""


@asynccontextmanager
async def shown(tally: Tally, console: Console) -> AsyncIterator[None]:
    """Show a run's progress until it ends; nothing where the console is no terminal."""
    if not console.is_terminal:
        yield
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_refresh(live, tally))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _refresh(live: Live, tally: Tally) -> None:
    before, chunks = time.perf_counter(), tally.chunks
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        now = time.perf_counter()
        live.update(table(tally, (tally.chunks - chunks) / (now - before)), refresh=True)
        before, chunks = now, tally.chunks


def table(tally: Tally, chunks_per_second: float) -> Table:
    """One line of what is known by now."""
    made = Table(box=None, pad_edge=False)
    for name in ("done", "running", "failed", "tokens/s now", "tokens/s", "TTFT median"):
        made.add_column(name, justify="right")
    seconds = max(time.perf_counter() - tally.began, 1e-9)
    recent = tally.ttfts[-RECENT:]
    made.add_row(
        f"{tally.done}/{tally.total}",
        str(tally.running),
        str(tally.failed),
        f"{chunks_per_second:.0f}",
        f"{tally.chunks / seconds:.0f}",
        f"{median(recent) * 1000:.1f} ms" if recent else "",
    )
    return made
