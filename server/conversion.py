"""Adapters into the store; PEFT's are brought to the bundle's form in a process of their own, `loraplex adapter
convert`.

What comes from outside is read where it can take neither the server's memory nor its time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from loraplex.server.bundle import ADAPTER_MANIFEST, AdapterManifest, read_adapter_manifest
from loraplex.server.errors import AdapterInvalid, StorageFailed
from loraplex.server.machine import available_memory, usable_cores
from loraplex.server.room import Room
from loraplex.server.store import Store

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
CPU_SECONDS = 30
"""What one may take; an adapter of 100 MB takes two."""
TIMEOUT = 120.0
"""Seconds that one may take on a machine that has other things to do."""
ROOM = 2**16
"""Bytes beside the weights."""
LIBRARIES = 100 * 2**20
"""Bytes of memory that one takes for itself."""
COPIES = 8
"""Times the size of its weights that one takes besides, at most: float16 weights are scaled in float32."""
REASON = 500
"""Characters of what went wrong that a client gets."""


class Conversions:
    """Brings adapters into one store. Half of the cores and of the free memory are for conversions, the others for the
    engine: what finds no room waits for its turn.
    """

    def __init__(self, store: Store, bundle: Path) -> None:
        self._store = store
        self._bundle = bundle
        self._room = Room(max(1, usable_cores() // 2), lambda: available_memory() // 2)

    async def take_over(self, name: str, source: Path, target: Path) -> None:
        """A copy of the adapter in `source` at `target`, converted where it is PEFT's.

        Raises AdapterInvalid and StorageFailed.
        """
        if (source / ADAPTER_MANIFEST).is_file() or not (source / PEFT_CONFIG).is_file():
            manifest = await asyncio.to_thread(_read_manifest, name, source)
            files = [ADAPTER_MANIFEST, manifest.file]
            if manifest.chat_template:
                files.append(manifest.chat_template)
            await asyncio.to_thread(self._store.copy, name, source, files, target)
            return
        peft = target.with_name(".peft")  # no adapter can have this name
        await asyncio.to_thread(self._store.copy, name, source, [PEFT_CONFIG, PEFT_WEIGHTS], peft)
        try:
            async with self._room.take(LIBRARIES + COPIES * (peft / PEFT_WEIGHTS).stat().st_size):
                await convert(self._bundle, peft, target, name)
        except AdapterInvalid:
            # What the library that writes the file says of a full disk differs from one system to another.
            await asyncio.to_thread(_check_room, name, peft)
            raise
        await asyncio.to_thread(shutil.rmtree, peft)


async def convert(bundle: Path, peft: Path, target: Path, name: str) -> None:
    """Write the adapter of a PEFT folder into the new folder `target`. Raises AdapterInvalid with the reason."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loraplex.server", "adapter", "convert", str(bundle), str(peft)),
        *("--name", name, "--output", str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C is for the server, which lets requests finish
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
    if sys.platform != "win32" and process.returncode == -signal.SIGXCPU:
        raise AdapterInvalid(f"adapter {name!r} took more than {CPU_SECONDS} s to convert")
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        reason = lines[-1].removeprefix("loraplex: ")
        for folder in (peft, target.parent):  # where the server keeps its files is no client's business
            reason = reason.replace(f"{folder}{os.sep}", "")
        raise AdapterInvalid(f"adapter {name!r} cannot be converted: {reason[:REASON]}")


def _read_manifest(name: str, source: Path) -> AdapterManifest:
    """Raises AdapterInvalid, in words that do not tell a client where the server keeps its files."""
    try:
        return read_adapter_manifest(source)
    except AdapterInvalid as error:
        message = error.message.replace(f"{source}{os.sep}", "").replace(str(source), "it")
        raise AdapterInvalid(f"adapter {name!r}: {message}") from None


def _check_room(name: str, peft: Path) -> None:
    """Raises StorageFailed where the disk cannot hold what is made of a PEFT folder: float32 at most."""
    wanted = 2 * (peft / PEFT_WEIGHTS).stat().st_size + ROOM
    if shutil.disk_usage(peft).free < wanted:
        raise StorageFailed(f"adapter {name!r} could not be stored: {os.strerror(errno.ENOSPC)}")


def _limit(pid: int) -> None:
    """Let the system end a process that would outlive this one, where the system can."""
    if sys.platform == "linux":
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).rlimit(psutil.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
