"""Adapters on their way from the Hugging Face hub, each fetched by a process of its own.

A download takes as long as the hub likes. A thread would go on when nobody waits for it any more, and keep the server
from ending; a process is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import msgspec

from loraplex.server.errors import AdapterInvalid, HubFailed, LoraplexError, ModelNotFound, StorageFailed
from loraplex.server.hub_adapter import Fetched

logger = logging.getLogger("loraplex.hub")

AT_ONCE = 4
"""More wait for their turn."""
_ERRORS: dict[str | None, type[LoraplexError]] = {
    kind.code: kind for kind in (AdapterInvalid, HubFailed, ModelNotFound, StorageFailed)
}


class HubDownloads:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, given: str, target: Path, limit: int) -> str:
        """`hub_adapter.fetch_adapter`, which ends if this is cancelled; it raises the same."""
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loraplex.server.hub_adapter", given, str(target), str(limit)),
                stdin=asyncio.subprocess.PIPE,  # by whose end it knows that this process is gone
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                start_new_session=True,  # a terminal's Ctrl-C is for the server
            )
            assert process.stdout is not None
            try:
                said = await process.stdout.read()
                status = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            fetched = msgspec.json.decode(said, type=Fetched)
        except msgspec.DecodeError:
            raise HubFailed(f"{given} cannot be had from the hub: what fetches it ended with status {status}") from None
        if fetched.code is None:
            return fetched.source
        logger.warning("%s", fetched.message)
        raise _ERRORS.get(fetched.code, HubFailed)(fetched.message, param=fetched.param)
