"""Everything a request handler needs, put together once when the server starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from loraplex.server.admission import Admission
from loraplex.server.bundle import Bundle
from loraplex.server.engine.client import EngineClient
from loraplex.server.engine.messages import Start
from loraplex.server.errors import NotReady
from loraplex.server.generation import Generation
from loraplex.server.metrics import Metrics
from loraplex.server.registry import Registry
from loraplex.server.settings import Settings
from loraplex.server.text.guide import GuideChecker
from loraplex.server.text.tokenizer import Text


@dataclass(frozen=True)
class Serving:
    """The parts of one running server."""

    settings: Settings
    bundle: Bundle
    text: Text
    engine: EngineClient
    registry: Registry
    admission: Admission
    generation: Generation
    metrics: Metrics
    guides: GuideChecker
    context_length: int
    """Longest sequence, in tokens."""
    fingerprint: str
    """The system_fingerprint of every answer: which base gave it."""

    def cut(self) -> None:
        """End every request with an error; streams get it as an event."""
        stopping = NotReady("the server is shutting down", retry_after=1)
        self.admission.close(stopping)
        self.engine.fail_everything(stopping)


@asynccontextmanager
async def open_serving(settings: Settings, bundle: Bundle) -> AsyncIterator[Serving]:
    """Start the engine, load the adapters; stop the engine at the end.

    Raises BundleInvalid, and AdapterInvalid where `settings.strict`.
    """
    base = bundle.manifest.base
    folder = bundle.variant("generator")
    text = Text(folder)
    metrics = Metrics()
    registry = Registry(bundle, text)
    start = Start(
        str(folder),
        base,
        settings.device,
        settings.engine_threads(),
        settings.prefill_chunk,
        settings.telemetry,
        settings.engine,
        settings.kv_cache_mib * 2**20,
    )
    async with EngineClient(start, on_restart=metrics.engine_restarts.inc) as engine:
        await registry.load(engine, strict=settings.strict)
        admission = Admission(settings.max_running, settings.max_waiting, metrics)
        yield Serving(
            settings=settings,
            bundle=bundle,
            text=text,
            engine=engine,
            registry=registry,
            admission=admission,
            generation=Generation(engine, admission, text, metrics),
            metrics=metrics,
            guides=GuideChecker(),
            context_length=min(base.context_length, settings.max_model_len or base.context_length),
            fingerprint="fp_" + base.fingerprint.removeprefix("sha256:")[:12],
        )


def serving(request: Request) -> Serving:
    """The server that a request came to."""
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found
