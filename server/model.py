"""What stands behind the names that clients give: models, and the loads of adapters that they are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct

from loraplex.server.bundle import AdapterManifest, Sampling
from loraplex.server.options import Options
from loraplex.server.text.foreign_template import ForeignTemplate
from loraplex.server.text.template import ChatTemplate

State = Literal["loading", "ready", "draining", "failed"]


class Model(Struct, frozen=True):
    """What one name stands for. `adapter` is what the engine calls it; None for the base."""

    name: str
    adapter: str | None
    template: ChatTemplate | ForeignTemplate | None
    sampling: tuple[Sampling, ...]
    """Defaults in order of precedence."""
    created: int
    root: str
    description: str
    manifest: AdapterManifest | None = None
    options: Options = Options()

    def max_tokens(self, otherwise: int) -> int:
        """Longest answer, in tokens, where a request does not say."""
        return next((found.max_tokens for found in self.sampling if found.max_tokens is not None), otherwise)


@dataclass
class Adapter:
    """One load of one adapter."""

    name: str
    folder: Path
    source: str
    state: State = "loading"
    reason: str = ""
    """Why it failed."""
    model: Model | None = None
    users: int = 0
    """Requests that run or wait under it."""
    used: float | None = None
    """Unix time of the last request for it."""


def adapted(
    base: Model,
    adapter: Adapter,
    engine_name: str | None,
    template: ChatTemplate | ForeignTemplate | None,
    manifest: AdapterManifest,
    options: Options,
) -> Model:
    """What an adapter makes of the base."""
    return Model(
        adapter.name,
        engine_name,
        template,
        (options.sampling, manifest.sampling, *base.sampling),
        adapter.model.created if adapter.model else int(time.time()),
        adapter.source,
        manifest.description if options.description is None else options.description,
        manifest,
        options,
    )
