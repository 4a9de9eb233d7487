"""PEFT adapters to the bundle's form, in a process of their own: `loraplex adapter convert`.

What comes from outside is read where it can take neither the server's memory nor its time.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from loraplex.server.errors import AdapterInvalid

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
TIMEOUT = 30.0
"""Seconds that one may take; an adapter of 100 MB takes two."""
REASON = 500
"""Characters of what went wrong that a client gets."""


async def convert(bundle: Path, peft: Path, target: Path, name: str) -> None:
    """Write the adapter of a PEFT folder into the new folder `target`. Raises AdapterInvalid with the reason."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loraplex.server", "adapter", "convert", str(bundle), str(peft)),
        *("--name", name, "--output", str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _limit(process.pid)
    try:
        async with asyncio.timeout(TIMEOUT):
            _, said = await process.communicate()
    except TimeoutError:
        raise AdapterInvalid(f"adapter {name!r} took more than {TIMEOUT:.0f} s to convert") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        raise AdapterInvalid(f"adapter {name!r} cannot be converted: {lines[-1].removeprefix('loraplex: ')[:REASON]}")


def _limit(pid: int) -> None:
    """Let the system end a process that would outlive this one, where the system can."""
    if sys.platform == "linux":
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).rlimit(psutil.RLIMIT_CPU, (int(TIMEOUT), int(TIMEOUT)))
