"""The lane beside the routed one, over the same base: it takes what that one cannot do, or only after a change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.slots import Adapter
from loraplex.server.errors import AdapterInvalid

logger = logging.getLogger("loraplex.routed")

Folders = Mapping[Adapter, tuple[Path, AdapterManifest]]


class LaneBeside:
    """Opened when it is first needed; until then, and where there is no room for it, there is nothing to do."""

    def __init__(
        self, open_lane: Callable[[], Lane | None] | None, unsupported: frozenset[str], folders: Folders
    ) -> None:
        """`folders` are those of the adapters, as they are whenever it is opened."""
        self._open = open_lane
        self._unsupported = unsupported
        self._folders = folders
        self._lane: Lane | None = None

    @property
    def busy(self) -> bool:
        return self._lane is not None and self._lane.busy

    def take(self, request: Submit) -> bool:
        """Whether it takes this one on."""
        if request.asks_for(self._unsupported) or (lane := self._opened()) is None:
            return False
        lane.submit(request)
        return True

    def step(self) -> list[Output]:
        return self._lane.step() if self._lane and self._lane.busy else []

    def cancel(self, sequence: int) -> None:
        if self._lane:
            self._lane.cancel(sequence)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        """Raises AdapterInvalid."""
        if self._lane:
            self._lane.load_adapter(name, folder, manifest)

    def unload_adapter(self, name: str) -> Collection[Future[Any]]:
        """What still reads its folder."""
        return (self._lane.unload_adapter(name) if self._lane else None) or ()

    def _opened(self) -> Lane | None:
        if self._lane is None and self._open and (lane := self._open()):
            for adapter, (folder, manifest) in self._folders.items():
                try:
                    lane.load_adapter(adapter.name, folder, manifest)
                except AdapterInvalid as error:  # its file may be damaged since it was checked
                    logger.warning("%s", error.message)
            self._lane = lane
        return self._lane
