"""The models a client can name: the base and its adapters, which come, go and change while requests run.

The engine knows each load of an adapter by a name of its own. Replacing one loads the new weights beside the old ones,
then gives new requests the new ones; the old are unloaded when the last request that uses them ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from loraplex.server.adapter_options import AdapterOptions
from loraplex.server.bundle import Bundle, Name, inside
from loraplex.server.conversion import Conversions
from loraplex.server.departures import Departures
from loraplex.server.engine.client import EngineClient
from loraplex.server.errors import AdapterBusy, AdapterInvalid, BundleInvalid, InvalidRequest, ModelNotFound
from loraplex.server.model import Adapter, Model, adapted
from loraplex.server.options import Options
from loraplex.server.store import Store
from loraplex.server.text.foreign_template import ForeignTemplate
from loraplex.server.text.template import ChatTemplate
from loraplex.server.text.tokenizer import Text

logger = logging.getLogger("loraplex.registry")


class Registry:
    """Models by name. A refused adapter keeps its reason, so that a client that asks for it learns why."""

    def __init__(self, bundle: Bundle, text: Text, store: Store, on_gone: Callable[[str], None]) -> None:
        """`on_gone` gets each name that no adapter and no request has any more."""
        base = bundle.manifest.base
        self._bundle = bundle
        self._text = text
        self._store = store
        self._conversions = Conversions(store, bundle.folder)
        self._numbers = itertools.count(2)
        self._on_gone = on_gone
        self._engine: EngineClient | None = None
        self.base = Model(
            base.name, None, text.template, (base.sampling,), int(time.time()), base.name, base.description
        )
        self._adapters: dict[str, Adapter] = {}
        self._loading: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        """Held while options change: two changes at once could both take an alias."""
        self.departures = Departures(store, self._unload, self._check_gone)
        self.options = AdapterOptions(store, base.name)

    def __iter__(self) -> Iterator[Model]:
        """What can be asked for now."""
        yield self.base
        for adapter in self._adapters.values():
            if adapter.model:
                yield adapter.model

    def adapters(self, name: str | None = None) -> list[Adapter]:
        """Every load there is, of one name or all: those in use, on their way in and on their way out."""
        found = (*self._adapters.values(), *self._loading.values(), *self.departures)
        return [adapter for adapter in found if name in (None, adapter.name)]

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by the name of each adapter that failed."""
        return {adapter.name: adapter.reason for adapter in self._adapters.values() if adapter.state == "failed"}

    def has(self, name: str) -> bool:
        return name == self.base.name or self.options.plain(name) in self._adapters

    def serves(self, name: str) -> bool:
        """Whether this model can be asked for now."""
        adapter = self._adapters.get(self.options.plain(name))
        return name == self.base.name or (adapter is not None and adapter.model is not None)

    def is_loaded(self, name: str) -> bool:
        """Whether an adapter has this name, or is on its way to it, whatever drains."""
        return any(adapter.state != "draining" for adapter in self.adapters(name))

    def get(self, name: str) -> Model:
        """Raises ModelNotFound."""
        if name == self.base.name:
            return self.base
        adapter = self._adapters.get(self.options.plain(name))
        if adapter is None:
            raise ModelNotFound(f"The model {name!r} does not exist. GET /v1/models lists what does", param="model")
        if adapter.model is None:
            raise ModelNotFound(f"The model {name!r} was refused: {adapter.reason}", param="model")
        return adapter.model

    @contextmanager
    def use(self, name: str) -> Iterator[Model]:
        """A model that stays loaded until the context is left. Raises ModelNotFound."""
        model = self.get(name)
        if model is self.base:
            yield model
            return
        adapter = self._adapters[model.name]
        adapter.users += 1
        adapter.used = time.time()
        try:
            yield model
        finally:
            adapter.users -= 1
            if adapter.state == "draining":
                self.departures.check(adapter)

    def check_name(self, name: str) -> None:
        """Whether an adapter may have this name. Raises InvalidRequest."""
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            raise InvalidRequest(
                f"{name!r} cannot be an adapter's name: use up to 96 letters, digits, '.', '_' and '-'", param="name"
            ) from None
        if name == self.base.name:
            raise InvalidRequest(f"{name!r} is the name of the base", param="name")
        if (other := self.options.plain(name)) != name:
            raise InvalidRequest(f"{name!r} is an alias of {other!r}", param="name")

    async def start(self, engine: EngineClient, *, strict: bool) -> None:
        """Load the adapters of the bundle and those of an earlier run, which take the place of the bundle's.

        A broken one is left out with one log line, or, if `strict`, raises AdapterInvalid.
        """
        self._engine = engine
        kept = self._store.index.adapters
        sources = self._bundle.manifest.adapters | {name: kept[name].source for name in kept}
        self._adapters = {name: Adapter(name, self._bundle.folder, source) for name, source in sources.items()}
        for name, adapter in self._adapters.items():
            self.options.recall(name, self._names)
            try:
                adapter.folder = self._store.folder(name) if name in kept else self._bundle.adapter(name)
                await self._load(adapter, name)
                self._renew(adapter)
            except (AdapterInvalid, BundleInvalid) as error:
                if strict:
                    raise AdapterInvalid(f"adapter {name!r}: {error.message}") from None
                adapter.state, adapter.reason = "failed", error.message
                engine.unload_adapter(name)  # its template may be what is wrong
                logger.error("adapter refused: %s", error.message)

    async def load(self, name: str, folder: Path, *, source: str, keep: bool = True) -> Adapter:
        """Load the adapter in `folder`, our own or PEFT's, under this name, in place of one that has it.

        What is wrong with the new one changes nothing for the old. `keep` says whether it is loaded again after a
        restart. Raises InvalidRequest, AdapterBusy, AdapterInvalid, StorageFailed, NotReady or EngineFailed.
        """
        self.check_name(name)
        if name in self._loading:
            raise AdapterBusy(f"adapter {name!r} is being loaded: wait until it is, then load the other")
        adapter = self._loading[name] = Adapter(name, folder, source)
        engine_name: str | None = None
        try:
            adapter.folder = await asyncio.to_thread(self._store.place, name)
            try:
                await self._conversions.take_over(name, folder, adapter.folder)
                engine_name = f"{name}#{next(self._numbers)}"
                await self._load(adapter, engine_name)
                if keep:
                    await asyncio.to_thread(self._store.keep, name, adapter.folder, source)
            except BaseException:
                self.departures.discard(engine_name, adapter.folder)
                await self.departures.settle()
                raise
        finally:
            del self._loading[name]
        if replaced := self._adapters.get(name):
            self._retire(replaced)
        self._adapters[name] = adapter
        self.options.recall(name, self._names)
        self._renew(adapter)
        logger.info("adapter %s loaded from %s", name, source)
        await self.departures.settle()
        return adapter

    def refuse(self, name: str, folder: Path, *, source: str, reason: str) -> Adapter | None:
        """Tell whoever asks for this name why it could not be loaded, where nothing else has the name.

        None where something has: what is wrong with the new one changes nothing for the old. The next load takes its
        place.
        """
        if self.serves(name):
            return None
        adapter = self._adapters[name] = Adapter(name, folder, source, "failed", reason)
        self.options.recall(name, self._names)
        return adapter

    async def unload(self, name: str) -> Adapter:
        """Take an adapter off the list; it stays for the requests that use it.

        Raises ModelNotFound, AdapterBusy and StorageFailed.
        """
        if name in self._loading:
            raise AdapterBusy(f"adapter {name!r} is being loaded: wait until it is, then unload it")
        adapter = self._adapters.get(name)
        if adapter is not None:
            await asyncio.to_thread(self._store.forget, name)
        if adapter is None or self._adapters.get(name) is not adapter:  # somebody else was faster
            raise ModelNotFound(f"The adapter {name!r} cannot be found", param="name")
        del self._adapters[name]
        self.options.forget(name)
        self._retire(adapter)
        logger.info("adapter %s unloaded", name)
        await self.departures.settle()
        return adapter

    async def change_options(self, name: str, change: Mapping[str, object]) -> Adapter:
        """Set some of an adapter's options, for requests from now on; the others stay.

        Raises ModelNotFound, InvalidRequest or StorageFailed.
        """
        async with self._changing:
            return await self._set_options(name, msgspec.structs.replace(self.options[name], **change))

    async def _set_options(self, name: str, options: Options) -> Adapter:
        if name not in self._adapters:
            raise ModelNotFound(f"The adapter {name!r} cannot be found", param="name")
        self.options.check_aliases(name, options.aliases, self._names)
        if options.pinned and not self.options[name].pinned:
            self._check_place(name)
        await asyncio.to_thread(self._store.set_options, name, options)
        adapter = self._adapters.get(name)
        if adapter is None:  # it was unloaded meanwhile
            await asyncio.to_thread(self._store.forget, name)
            raise ModelNotFound(f"The adapter {name!r} cannot be found", param="name")
        self.options[name] = options
        self._renew(adapter)
        return adapter

    @property
    def _names(self) -> set[str]:
        return {*self._adapters, *self._loading}

    def _check_place(self, name: str) -> None:
        """Whether one more adapter may be pinned: another must find a place. Raises InvalidRequest."""
        assert self._engine is not None
        places = self._engine.places
        pinned = self.options.pinned
        if places is not None and pinned + 1 >= places:
            raise InvalidRequest(
                f"{name!r} cannot be pinned: {pinned} adapters are, of {places} that the model has room for, and one "
                "place is for the others",
                param="pinned",
            )

    def lose(self, engine_name: str, reason: str) -> None:
        """The engine was started again and cannot load this adapter any more."""
        for adapter in (*self._adapters.values(), *self._loading.values()):
            if adapter.model and adapter.model.adapter == engine_name:
                adapter.model, adapter.state, adapter.reason = None, "failed", reason

    async def _load(self, adapter: Adapter, engine_name: str) -> None:
        """Raises AdapterInvalid, NotReady or EngineFailed."""
        assert self._engine is not None
        # What fails from here on is the caller's to unload.
        manifest = await self._engine.load_adapter(engine_name, adapter.folder)
        template: ChatTemplate | ForeignTemplate | None = self.base.template
        try:
            if manifest.chat_template is not None:
                template = await self._text.adapter_template(inside(adapter.folder, manifest.chat_template))
        except BundleInvalid as error:
            raise AdapterInvalid(f"adapter {adapter.name!r}: {error.message}") from None
        adapter.state = "ready"
        adapter.model = adapted(self.base, adapter, engine_name, template, manifest, self.options[adapter.name])

    def _renew(self, adapter: Adapter) -> None:
        """Let it have the options of its name as they are now: they may have changed while it was loaded."""
        if (model := adapter.model) and model.manifest:
            options = self.options[adapter.name]
            adapter.model = adapted(self.base, adapter, model.adapter, model.template, model.manifest, options)
            self._pin(adapter, options.pinned)

    def _pin(self, adapter: Adapter, pinned: bool) -> None:
        if self._engine and adapter.model and adapter.model.adapter is not None:
            self._engine.pin_adapter(adapter.model.adapter, pinned)

    def _retire(self, adapter: Adapter) -> None:
        """Its place in the model is pinned for those that come after it, not for the requests that it still has."""
        self._pin(adapter, False)
        self.departures.add(adapter)

    def _unload(self, engine_name: str) -> Awaitable[None]:
        assert self._engine is not None
        return self._engine.unload_adapter(engine_name)

    def _check_gone(self, name: str) -> None:
        """Called when no request uses a load of this name any more."""
        if not self.adapters(name):
            self._on_gone(name)
