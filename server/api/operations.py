"""What operators and orchestrators ask: /health, /ready, /metrics, /version."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.stream import json_response
from loraplex.server.engine.client import State
from loraplex.server.metrics import CONTENT_TYPE
from loraplex.server.serving import serving


class Health(Struct, frozen=True):
    status: Literal["ok", "failed"]
    engine: State
    refused: dict[str, str]
    """Why each adapter that is not served is not, by name."""


class Ready(Struct, frozen=True):
    ready: bool
    engine: State


class Version(Struct, frozen=True):
    version: str
    lane: str
    device: str
    threads: int
    packages: dict[str, str]
    """Versions by name."""


async def health(request: Request) -> Response:
    """200 as long as the server can mend itself; 503 once only a restart of the whole server helps."""
    server = serving(request)
    state = server.engine.state
    failed = state == "failed"
    return json_response(Health("failed" if failed else "ok", state, server.registry.refused), 503 if failed else 200)


async def ready(request: Request) -> Response:
    """200 while requests are answered at once; 503 while the engine is down or restarting."""
    state = serving(request).engine.state
    return json_response(Ready(state == "ready", state), 200 if state == "ready" else 503)


async def metrics(request: Request) -> Response:
    server = serving(request)
    # Those on their way out still have requests to count.
    adapters = [adapter.name for adapter in server.registry.adapters()]
    server.metrics.forget_others([server.registry.base.name, *adapters], server.keys.classes if server.keys else ())
    return Response(server.metrics.exposition(), media_type=CONTENT_TYPE)


async def version(request: Request) -> Response:
    started = serving(request).engine.started
    assert started is not None
    return json_response(
        Version(
            started.versions.get("loraplex", "unknown"),
            started.lane,
            started.device,
            started.threads,
            started.versions,
        )
    )
