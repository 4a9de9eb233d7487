"""The models a client can name: the base and its adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from msgspec import Struct

from loraplex.server.bundle import AdapterManifest, Bundle, Sampling, inside
from loraplex.server.engine.client import EngineClient
from loraplex.server.errors import AdapterInvalid, BundleInvalid, ModelNotFound
from loraplex.server.text.template import ChatTemplate
from loraplex.server.text.tokenizer import Text

logger = logging.getLogger("loraplex.registry")


class Model(Struct, frozen=True):
    """What one name stands for. `adapter` is None for the base."""

    name: str
    adapter: str | None
    template: ChatTemplate | None
    sampling: tuple[Sampling, ...]
    """Defaults in order of precedence."""
    created: int
    root: str
    description: str
    manifest: AdapterManifest | None = None


class Registry:
    """Models by name. A refused adapter keeps its reason, so that a client that asks for it learns why."""

    def __init__(self, bundle: Bundle, text: Text) -> None:
        base = bundle.manifest.base
        self._bundle = bundle
        self._text = text
        self._created = int(time.time())
        self.base = Model(base.name, None, text.template, (base.sampling,), self._created, base.name, base.description)
        self._models = {base.name: self.base}
        self.refused: dict[str, str] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str) -> Model:
        """Raises ModelNotFound."""
        if model := self._models.get(name):
            return model
        if reason := self.refused.get(name):
            raise ModelNotFound(f"The model {name!r} was refused when the server started: {reason}", param="model")
        raise ModelNotFound(f"The model {name!r} does not exist. GET /v1/models lists what does", param="model")

    async def load(self, engine: EngineClient, *, strict: bool) -> None:
        """Load every adapter of the bundle.

        A broken one is left out with one log line, or, if `strict`, raises AdapterInvalid.
        """
        for name in self._bundle.manifest.adapters:
            try:
                self._models[name] = await self._load(engine, name)
            except AdapterInvalid as error:
                if strict:
                    raise
                self.refused[name] = error.message
                logger.error("adapter refused: %s", error.message)

    async def _load(self, engine: EngineClient, name: str) -> Model:
        try:
            folder = self._bundle.adapter(name)
            manifest = await engine.load_adapter(name, folder)
            template = self.base.template
            if manifest.chat_template is not None:
                template = self._text.adapter_template(inside(folder, manifest.chat_template))
        except BundleInvalid as error:
            raise AdapterInvalid(f"adapter {name!r}: {error.message}") from None
        return Model(
            name,
            name,
            template,
            (manifest.sampling, *self.base.sampling),
            self._created,
            self._bundle.manifest.adapters[name],
            manifest.description,
            manifest,
        )
