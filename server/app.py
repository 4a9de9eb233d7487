"""The ASGI application: routes, and errors in OpenAI's shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from loraplex.server.api.adapters import (
    delete_adapter,
    get_adapter,
    list_adapters,
    load_lora_adapter,
    patch_adapter,
    put_adapter,
    unload_lora_adapter,
)
from loraplex.server.api.chat import chat_completions
from loraplex.server.api.completions import completions
from loraplex.server.api.input_tokens import input_tokens
from loraplex.server.api.models import get_model, list_models
from loraplex.server.api.operations import health, metrics, ready, version
from loraplex.server.api.reference import docs, openapi
from loraplex.server.api.responses import responses
from loraplex.server.api.stream import CLIENT_CLOSED_REQUEST, INTERNAL_ERROR, error_response, json_response
from loraplex.server.api.tokenize import detokenize, tokenize
from loraplex.server.errors import LoraplexError, MethodNotAllowed, NotFound
from loraplex.server.middleware import Recorded
from loraplex.server.record import current
from loraplex.server.serving import Serving, serving

ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{id}", get_model),
    Route("/v1/adapters", list_adapters),
    Route("/v1/adapters/{name}", get_adapter, methods=["GET"]),
    Route("/v1/adapters/{name}", put_adapter, methods=["PUT"]),
    Route("/v1/adapters/{name}", patch_adapter, methods=["PATCH"]),
    Route("/v1/adapters/{name}", delete_adapter, methods=["DELETE"]),
    Route("/v1/load_lora_adapter", load_lora_adapter, methods=["POST"]),
    Route("/v1/unload_lora_adapter", unload_lora_adapter, methods=["POST"]),
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
    Route("/version", version),
    Route("/openapi.json", openapi),
    Route("/docs", docs),
]


def create_app(server: Serving) -> ASGIApp:
    """The application of a server whose parts run already."""
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            LoraplexError: refuse,
            HTTPException: refuse_route,
            ClientDisconnect: leave,
            Exception: fail,
        },
    )
    app.state.serving = server
    # A path with a slash too many is unknown: clients follow a redirect of a POST as a GET, or drop their key.
    app.router.redirect_slashes = False
    around: ASGIApp = app
    if origins := server.settings.allowed_origins:
        # A browser asks without a key whether a page may ask, which no route answers.
        everything = ["*"]
        around = CORSMiddleware(
            app, origins, allow_methods=everything, allow_headers=everything, expose_headers=everything
        )
    # Around everything, Starlette's own error handling included: an answer without its id cannot be traced.
    return Recorded(around, server.tracing)


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoraplexError)
    serving(request).metrics.refused.labels(error.code or "unknown").inc()
    if record := current():
        record.code = error.code
    return error_response(error)


async def refuse_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    target = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        answer = await refuse(request, MethodNotAllowed(f"{target}: this path has other methods"))
        # Several routes may have this path, and Starlette names the methods of the first.
        found = [route.methods or () for route in ROUTES if route.matches(request.scope)[0] is not Match.NONE]
        answer.headers["allow"] = ", ".join(sorted(set().union(*found)))
        return answer
    return await refuse(request, NotFound(f"{target}: there is no such path"))


async def leave(_request: Request, _error: Exception) -> Response:
    """The client went before all of its body was there; only the log sees this."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def fail(_request: Request, _error: Exception) -> Response:
    return json_response(INTERNAL_ERROR, 500)
