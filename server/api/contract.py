"""Every path of the API: what it takes, what it answers, and which errors it can end in.

The OpenAPI document is made of this table. Tests compare it with the routes of the application, and its statuses with
what the server answers to generated requests.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from loraplex.server import errors
from loraplex.server.api import adapters, operations, responses_events, responses_schema, schema, tokenize
from loraplex.server.errors import LoraplexError

Errors = tuple[type[LoraplexError], ...]
Access = Literal["anyone", "key", "admin"]


class Text(Struct, frozen=True):
    """An answer that is no JSON."""

    media_type: str = "text/plain"


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: str
    path: str
    tag: str
    summary: str
    answers: dict[int, type[Struct] | Text]
    body: type[Struct] | None = None
    files: bool = False
    """The body may be multipart/form-data with files instead."""
    chunks: tuple[type[Struct], ...] = ()
    """What the events of the answer hold, where the answer may be streamed."""
    done: bool = True
    """A stream ends with [DONE]."""
    errors: Errors = ()
    access: Access = "anyone"
    foreign_errors: bool = False
    """Some errors have vLLM's shape."""


KEYED: Errors = (errors.Unauthorized, errors.RateLimited)
ADMIN: Errors = (*KEYED, errors.Forbidden)
BODY: Errors = (
    errors.InvalidRequest,
    errors.MalformedJSON,
    errors.UnknownParameter,
    errors.BodyTooSlow,
    errors.BodyTooLarge,
)
GENERATE: Errors = (
    *BODY,
    errors.UnsupportedParameter,
    errors.ContextLengthExceeded,
    errors.ModelNotFound,
    errors.QueueFull,
    errors.EngineFailed,
    errors.NotReady,
    errors.DeadlineExceeded,
)
LOAD: Errors = (
    *BODY,
    errors.ModelNotFound,
    errors.AdapterBusy,
    errors.AdapterInvalid,
    errors.EngineFailed,
    errors.NotReady,
    errors.StorageFailed,
)
EVERYWHERE: Errors = (errors.InvalidHTTP, errors.HeadersTooLarge, errors.Internal)
NAMED: Errors = (errors.NotFound,)
"""Of paths with a name in them, which may have a slash in it."""

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        tag="Generation",
        summary="Answer a conversation, at once or as a stream of events",
        body=schema.ChatRequest,
        answers={200: schema.ChatCompletion},
        chunks=(schema.ChatCompletionChunk,),
        errors=GENERATE,
        access="key",
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        tag="Generation",
        summary="Continue one or several prompts, at once or as a stream of events",
        body=schema.CompletionRequest,
        answers={200: schema.Completion},
        chunks=(schema.Completion,),
        errors=GENERATE,
        access="key",
    ),
    Operation(
        method="POST",
        path="/v1/responses",
        tag="Generation",
        summary="Answer a text or a list of items, at once or as a stream of events; nothing is stored",
        body=responses_schema.ResponsesRequest,
        answers={200: responses_schema.ModelResponse},
        chunks=responses_events.EVENTS,
        done=False,
        errors=GENERATE,
        access="key",
    ),
    Operation(
        method="POST",
        path="/tokenize",
        tag="Tokens",
        summary="The tokens of a prompt or of messages, in vLLM's words",
        body=tokenize.TokenizeRequest,
        answers={200: tokenize.Tokens},
        errors=(*BODY, errors.ModelNotFound),
        access="key",
    ),
    Operation(
        method="POST",
        path="/detokenize",
        tag="Tokens",
        summary="The text of tokens, in vLLM's words",
        body=tokenize.DetokenizeRequest,
        answers={200: tokenize.Prompt},
        errors=(*BODY, errors.ModelNotFound),
        access="key",
    ),
    Operation(
        method="GET",
        path="/v1/models",
        tag="Models",
        summary="The base and its adapters, as far as your key opens them",
        answers={200: schema.ModelList},
        access="key",
    ),
    Operation(
        method="GET",
        path="/v1/models/{id}",
        tag="Models",
        summary="One model",
        answers={200: schema.ModelCard},
        errors=(errors.ModelNotFound,),
        access="key",
    ),
    Operation(
        method="GET",
        path="/v1/adapters",
        tag="Adapters",
        summary="Every load of every adapter, and how it is",
        answers={200: adapters.AdapterList},
        access="admin",
    ),
    Operation(
        method="GET",
        path="/v1/adapters/{name}",
        tag="Adapters",
        summary="The newest load of one adapter",
        answers={200: adapters.AdapterCard},
        errors=(errors.ModelNotFound,),
        access="admin",
    ),
    Operation(
        method="PUT",
        path="/v1/adapters/{name}",
        tag="Adapters",
        summary="Load an adapter, or put another in its place, from a folder of the server or from uploaded files",
        body=adapters.AdapterSource,
        files=True,
        answers={200: adapters.AdapterCard, 201: adapters.AdapterCard},
        errors=LOAD,
        access="admin",
    ),
    Operation(
        method="PATCH",
        path="/v1/adapters/{name}",
        tag="Adapters",
        summary="Set aliases, description, sampling defaults, priority or concurrency of an adapter",
        body=adapters.AdapterChange,
        answers={200: adapters.AdapterCard},
        errors=(errors.ModelNotFound, errors.StorageFailed),
        access="admin",
    ),
    Operation(
        method="DELETE",
        path="/v1/adapters/{name}",
        tag="Adapters",
        summary="Unload an adapter; requests under way end on it",
        answers={200: adapters.AdapterCard},
        errors=(errors.ModelNotFound, errors.AdapterBusy, errors.StorageFailed),
        access="admin",
    ),
    Operation(
        method="POST",
        path="/v1/load_lora_adapter",
        tag="Adapters",
        summary="Load an adapter, in vLLM's words",
        body=adapters.LoadLoraAdapter,
        answers={200: Text()},
        errors=LOAD,
        access="admin",
        foreign_errors=True,
    ),
    Operation(
        method="POST",
        path="/v1/unload_lora_adapter",
        tag="Adapters",
        summary="Unload an adapter, in vLLM's words",
        body=adapters.UnloadLoraAdapter,
        answers={200: Text()},
        errors=(*BODY, errors.ModelNotFound, errors.AdapterBusy, errors.StorageFailed),
        access="admin",
        foreign_errors=True,
    ),
    Operation(
        method="GET",
        path="/health",
        tag="Operations",
        summary="200 while the server can mend itself, 503 once it cannot",
        answers={200: operations.Health, 503: operations.Health},
    ),
    Operation(
        method="GET",
        path="/ready",
        tag="Operations",
        summary="200 while requests are answered at once, 503 while the engine is down or starts again",
        answers={200: operations.Ready, 503: operations.Ready},
    ),
    Operation(
        method="GET",
        path="/metrics",
        tag="Operations",
        summary="Prometheus metrics",
        answers={200: Text()},
    ),
    Operation(
        method="GET",
        path="/version",
        tag="Operations",
        summary="Versions, and what runs",
        answers={200: operations.Version},
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        tag="Operations",
        summary="This document",
        answers={200: Text("application/json")},
    ),
    Operation(
        method="GET",
        path="/docs",
        tag="Operations",
        summary="This document as a page",
        answers={200: Text("text/html")},
    ),
)
