"""The ASGI application: routes, and errors in OpenAI's shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from loraplex.server.api.adapters import (
    delete_adapter,
    get_adapter,
    list_adapters,
    load_lora_adapter,
    put_adapter,
    unload_lora_adapter,
)
from loraplex.server.api.chat import chat_completions
from loraplex.server.api.completions import completions
from loraplex.server.api.models import get_model, list_models
from loraplex.server.api.operations import health, metrics, ready, version
from loraplex.server.api.schema import ErrorBody, ErrorResponse
from loraplex.server.api.stream import INTERNAL_ERROR, error_response, json_response
from loraplex.server.errors import LoraplexError
from loraplex.server.middleware import RequestId
from loraplex.server.serving import Serving, serving


def create_app(server: Serving) -> ASGIApp:
    """The application of a server whose parts run already."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{id}", get_model),
            Route("/v1/adapters", list_adapters),
            Route("/v1/adapters/{name}", get_adapter, methods=["GET"]),
            Route("/v1/adapters/{name}", put_adapter, methods=["PUT"]),
            Route("/v1/adapters/{name}", delete_adapter, methods=["DELETE"]),
            Route("/v1/load_lora_adapter", load_lora_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload_lora_adapter, methods=["POST"]),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Route("/version", version),
        ],
        exception_handlers={LoraplexError: refuse, HTTPException: refuse_route, Exception: fail},
    )
    app.state.serving = server
    # Around everything, Starlette's own error handling included: an answer without its id cannot be traced.
    return RequestId(app)


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoraplexError)
    serving(request).metrics.refused.labels(error.code or "unknown").inc()
    return error_response(error)


async def refuse_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = ErrorResponse(
        ErrorBody(message, "invalid_request_error", None, "not_found" if error.status_code == 404 else None)
    )
    return json_response(body, error.status_code, dict(error.headers or {}))


async def fail(_request: Request, _error: Exception) -> Response:
    return json_response(INTERNAL_ERROR, 500)
