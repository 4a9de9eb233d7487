"""The lane beside the routed one, over the same base: it takes what that one cannot do, or only after a change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.slots import Adapter
from loraplex.server.errors import AdapterInvalid, BundleInvalid

logger = logging.getLogger("loraplex.routed")

RELINK_SECONDS = 10.0
"""From one change of engines to the next that is made for adapters whose requests are answered meanwhile."""

RETRY_SECONDS = 60.0
"""Before another try to open it where it could not be opened: a try holds up all that runs."""

Folders = Mapping[Adapter, tuple[Path, AdapterManifest]]


class LaneBeside:
    """Opened when it is first needed; until then, and where it cannot be opened, there is nothing to do."""

    def __init__(
        self, open_lane: Callable[[], Lane | None] | None, unsupported: frozenset[str], folders: Folders
    ) -> None:
        """`folders` are those of the adapters, as they are whenever it is opened."""
        self._open = open_lane
        self._unsupported = unsupported
        self._folders = folders
        self._lane: Lane | None = None
        self._again = 0.0
        """When it may be tried to open it, by time.monotonic()."""
        self._cold: dict[Adapter, None] = {}

    @property
    def busy(self) -> bool:
        return self._lane is not None and self._lane.busy

    def take(self, request: Submit, cold: Adapter | None = None) -> bool:
        """Whether it takes this one on; `cold` is its adapter where the routed engine does not have it."""
        if request.asks_for(self._unsupported) or (lane := self._opened()) is None:
            return False
        lane.submit(request)
        if cold:
            self._cold[cold] = None
        return True

    def cold(self, changed: float) -> list[Adapter]:
        """Adapters that it answered for and the routed engine could, each of them once; none where that engine has
        `changed` a short time ago, by time.monotonic().
        """
        if not self._cold or time.monotonic() - changed < RELINK_SECONDS:
            return []
        found, self._cold = self._cold, {}
        return [adapter for adapter in found if adapter in self._folders]

    def step(self) -> list[Output]:
        if self._lane is None or not self._lane.busy:
            return []
        return [replace(output, lane=self._lane.name) for output in self._lane.step()]

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
        if self._lane is None and self._open and (lane := self._try_to_open(self._open)):
            for adapter, (folder, manifest) in self._folders.items():
                try:
                    lane.load_adapter(adapter.name, folder, manifest)
                except AdapterInvalid as error:  # its file may be damaged since it was checked
                    logger.warning("%s", error.message)
            self._lane = lane
        return self._lane

    def _try_to_open(self, open_lane: Callable[[], Lane | None]) -> Lane | None:
        if time.monotonic() < self._again:
            return None
        lane = None
        try:
            lane = open_lane()
        except BundleInvalid as error:
            logger.warning("no engine beside the routed one: %s", error.message)
        self._again = time.monotonic() + RETRY_SECONDS
        return lane
