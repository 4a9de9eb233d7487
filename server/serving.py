"""Everything a request handler needs, put together once when the server starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from loraplex.server.adapter_dir import AdapterDir
from loraplex.server.admission import Admission
from loraplex.server.bundle import Bundle
from loraplex.server.engine.client import EngineClient
from loraplex.server.engine.connection import ENGINE
from loraplex.server.engine.messages import Routed, Start
from loraplex.server.errors import NotReady
from loraplex.server.gateway_metrics import GatewayMetrics
from loraplex.server.generation import Generation
from loraplex.server.hub_downloads import HubDownloads
from loraplex.server.keys import Keys
from loraplex.server.metrics import Metrics
from loraplex.server.outlet import Writes
from loraplex.server.registry import Registry
from loraplex.server.scratch import scratch_folder
from loraplex.server.settings import Settings
from loraplex.server.store import Store
from loraplex.server.text.guide import GuideChecker
from loraplex.server.text.tokenizer import Text
from loraplex.server.timing import Clocks
from loraplex.server.tracing import Tracing

logger = logging.getLogger("loraplex")


@dataclass(frozen=True)
class Serving:
    """The parts of one running server."""

    settings: Settings
    bundle: Bundle
    text: Text
    engine: EngineClient
    registry: Registry
    store: Store
    hub: HubDownloads
    adapter_dir: AdapterDir | None
    admission: Admission
    generation: Generation
    writes: Writes
    metrics: Metrics
    guides: GuideChecker
    keys: Keys | None
    """None: anyone may ask."""
    context_length: int
    """Longest sequence, in tokens."""
    tracing: Tracing | None
    """None: nobody is told."""
    fingerprint: str
    """The system_fingerprint of every answer: which base gave it."""

    def cut(self) -> None:
        """End every request with an error; streams get it as an event."""
        stopping = NotReady("the server is shutting down", retry_after=1)
        self.admission.close(stopping)
        self.engine.fail_everything(stopping)


@asynccontextmanager
async def open_serving(
    settings: Settings, bundle: Bundle, engine_command: Sequence[str] = ENGINE
) -> AsyncIterator[Serving]:
    """Start the engine by its command, load the adapters; stop the engine at the end.

    Raises BundleInvalid, KeysInvalid, StateInvalid, TracingUnavailable, and AdapterInvalid where `settings.strict`.
    """
    keys = Keys(settings.keys) if settings.keys else None
    base = bundle.manifest.base
    text = Text(bundle.variant("generator"))
    metrics = Metrics()
    clocks = Clocks(metrics)
    writes = Writes(then=clocks.count)
    async with AsyncExitStack() as cleanup:
        tracing = None
        if settings.otlp_endpoint:
            tracing = Tracing(settings.otlp_endpoint)
            cleanup.push_async_callback(asyncio.to_thread, tracing.close)
        state = settings.state_dir
        if state is None:
            state = cleanup.enter_context(scratch_folder())
        cleanup.push_async_callback(text.close)
        store = Store(state, settings.max_adapter_bytes)
        cleanup.callback(store.close)
        registry = Registry(bundle, text, store, metrics.forget)
        cleanup.push_async_callback(registry.departures.settle)
        engine = await cleanup.enter_async_context(
            EngineClient(
                engine_start(settings, bundle),
                on_restart=metrics.engine_restarts.inc,
                on_adapter_lost=registry.lose,
                step=writes,
                timeout=settings.engine_timeout,
                command=engine_command,
            )
        )
        await registry.start(engine, strict=settings.strict)
        adapter_dir = AdapterDir(settings.adapter_dir, registry) if settings.adapter_dir else None
        if adapter_dir:
            cleanup.push_async_callback(adapter_dir.close)
            await adapter_dir.load()
            watching = asyncio.create_task(adapter_dir.watch(), name="adapter dir")
            cleanup.push_async_callback(_cancel, watching)
        if settings.default_model is not None and not registry.has(settings.default_model):
            logger.warning("--default-model %s: there is no such model yet", settings.default_model)
        assert engine.started is not None
        metrics.lane = engine.started.lane
        admission = Admission(
            engine.started.max_running,
            settings.max_waiting,
            metrics,
            max_waiting_tokens=settings.max_waiting_tokens,
        )
        metrics.add(GatewayMetrics(engine, admission, base.name))
        yield Serving(
            settings=settings,
            bundle=bundle,
            text=text,
            engine=engine,
            registry=registry,
            store=store,
            hub=HubDownloads(),
            adapter_dir=adapter_dir,
            admission=admission,
            generation=Generation(engine, admission, text, clocks),
            writes=writes,
            metrics=metrics,
            guides=GuideChecker(),
            keys=keys,
            tracing=tracing,
            context_length=min(base.context_length, settings.max_model_len or base.context_length),
            fingerprint="fp_" + base.fingerprint.removeprefix("sha256:")[:12],
        )


def engine_start(settings: Settings, bundle: Bundle) -> Start:
    """What the engine is started with."""
    return Start(
        str(bundle.variant("generator")),
        bundle.manifest.base,
        settings.device,
        settings.engine_threads(),
        settings.prefill_chunk,
        settings.telemetry,
        settings.log_level,
        settings.log_format,
        settings.engine,
        settings.kv_cache_mib * 2**20,
        settings.max_running,
        Routed(
            str(bundle.variant("paged")) if "paged" in bundle.manifest.variants else None,
            [str(bundle.adapter(name)) for name in bundle.manifest.adapters],
            str(settings.link_cache) if settings.link_cache else None,
            settings.weights,
            settings.max_linked,
            settings.prefix_cache,
            settings.cuda_graphs,
        ),
    )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def serving(request: Request) -> Serving:
    """The server that a request came to."""
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found
