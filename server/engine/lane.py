"""What every lane can do. A lane runs sequences of one base under several adapters; it is driven by one thread."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.messages import Output, Submit


class Lane(Protocol):
    """One way to run the base with adapters.

    Errors of one sequence are its own: `submit` and `step` report them as its last Output, and raise only if nothing
    can go on.
    """

    name: str
    device: str
    unsupported: frozenset[str]
    """Fields of Sampling, and "guide", that it cannot honour."""

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache has room for; None where that is not known."""

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache that running sequences hold or may still need; None where that is not known."""

    @property
    def places(self) -> int | None:
        """Adapters that the model has room for at the same time; None where each has a place of its own."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    def submit(self, request: Submit) -> None:
        """Take a sequence on; its first tokens come out of a later `step`."""

    def step(self) -> list[Output]:
        """Advance the running sequences; one bounded amount of work."""

    def cancel(self, sequence: int) -> None:
        """Drop a sequence and free its memory; unknown ones are ignored."""

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        """Make a checked adapter available under a new name. Raises AdapterInvalid."""

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Never take an adapter's place for another's, or do so again; unknown ones are ignored."""

    def unload_adapter(self, name: str) -> Collection[Future[Any]] | None:
        """Forget an adapter that no sequence uses any more; unknown ones are ignored.

        What is returned, if anything, may still be reading its folder.
        """
