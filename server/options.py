"""What an operator sets on an adapter, whatever weights stand behind its name."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from loraplex.server.admission import Terms
from loraplex.server.bundle import Name, Positive, Sampling
from loraplex.server.rotation import Priority

MAX_ALIASES = 16


class Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Options of one adapter."""

    aliases: Annotated[tuple[Name, ...], Meta(max_length=MAX_ALIASES)] = ()
    """Other names that clients may call it."""
    description: Annotated[str, Meta(max_length=4096)] | None = None
    """Instead of the adapter's own."""
    sampling: Sampling = field(default_factory=Sampling)
    """Defaults that go before the adapter's own."""
    priority: Priority = "normal"
    max_running: Positive | None = None
    """Sequences of it that run at the same time; None leaves it to the server."""

    pinned: bool = False
    """It keeps its place in the model where adapters take turns for one, and stays when its folder disappears."""

    @property
    def terms(self) -> Terms:
        return Terms(self.priority, self.max_running)
