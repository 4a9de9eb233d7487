"""What operators and orchestrators ask: /health, /ready, /metrics, /version."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.stream import json_response
from loraplex.server.metrics import CONTENT_TYPE
from loraplex.server.serving import serving


async def health(request: Request) -> Response:
    """200 as long as the server can mend itself; 503 once only a restart of the whole server helps."""
    server = serving(request)
    state = server.engine.state
    body = {"status": "failed" if state == "failed" else "ok", "engine": state, "refused": server.registry.refused}
    return json_response(body, 503 if state == "failed" else 200)


async def ready(request: Request) -> Response:
    """200 while requests are answered at once; 503 while the engine is down or restarting."""
    state = serving(request).engine.state
    return json_response({"ready": state == "ready", "engine": state}, 200 if state == "ready" else 503)


async def metrics(request: Request) -> Response:
    return Response(serving(request).metrics.exposition(), media_type=CONTENT_TYPE)


async def version(request: Request) -> Response:
    started = serving(request).engine.started
    assert started is not None
    return json_response(
        {
            "version": started.versions.get("loraplex", "unknown"),
            "lane": started.lane,
            "device": started.device,
            "threads": started.threads,
            "packages": started.versions,
        }
    )
