"""Every path of the API: what it takes, what it answers, and which errors it can end in.

The OpenAPI document is made of this table. Tests compare it with the routes of the application, and its statuses with
what the server answers to generated requests.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from loraplex.server import errors
from loraplex.server.api import adapters, input_tokens, operations, responses_events, responses_schema, schema, tokenize
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
    errors.HubFailed,
    errors.StorageFailed,
)
EVERYWHERE: Errors = (errors.InvalidHTTP, errors.HeadersTooLarge, errors.TooManyConnections, errors.Internal)
NAMED: Errors = (errors.NotFound,)
"""Of paths with a name in them, which may have a slash in it."""


def _generate(
    path: str, summary: str, body: type[Struct], answer: type[Struct], chunks: tuple[type[Struct], ...], done: bool
) -> Operation:
    return Operation(
        method="POST",
        path=path,
        tag="Generation",
        summary=f"{summary}, at once or as a stream of events",
        body=body,
        answers={200: answer},
        chunks=chunks,
        done=done,
        errors=GENERATE,
        access="key",
    )


def _count(path: str, summary: str, body: type[Struct], answer: type[Struct], refused: Errors = ()) -> Operation:
    return Operation(
        method="POST",
        path=path,
        tag="Tokens",
        summary=summary,
        body=body,
        answers={200: answer},
        errors=(*BODY, errors.ModelNotFound, *refused),
        access="key",
    )


def _adapter(
    method: str,
    path: str,
    summary: str,
    answers: dict[int, type[Struct] | Text],
    refused: Errors = (),
    body: type[Struct] | None = None,
    *,
    files: bool = False,
    foreign_errors: bool = False,
) -> Operation:
    return Operation(
        method=method,
        path=path,
        tag="Adapters",
        summary=summary,
        body=body,
        files=files,
        answers=answers,
        errors=refused,
        access="admin",
        foreign_errors=foreign_errors,
    )


def _look(
    path: str, tag: str, summary: str, answers: dict[int, type[Struct] | Text], refused: Errors = ()
) -> Operation:
    access: Access = "key" if tag == "Models" else "anyone"
    return Operation(method="GET", path=path, tag=tag, summary=summary, answers=answers, errors=refused, access=access)


CARD: dict[int, type[Struct] | Text] = {200: adapters.AdapterCard}
SAID: dict[int, type[Struct] | Text] = {200: Text()}
MISSING: Errors = (errors.ModelNotFound,)
UNLOAD: Errors = (errors.ModelNotFound, errors.AdapterBusy, errors.StorageFailed)

OPERATIONS: tuple[Operation, ...] = (
    _generate(
        "/v1/chat/completions",
        "Answer a conversation",
        schema.ChatRequest,
        schema.ChatCompletion,
        (schema.ChatCompletionChunk,),
        done=True,
    ),
    _generate(
        "/v1/completions",
        "Continue one or several prompts",
        schema.CompletionRequest,
        schema.Completion,
        (schema.Completion,),
        done=True,
    ),
    _generate(
        "/v1/responses",
        "Answer a text or a list of items, without storing anything",
        responses_schema.ResponsesRequest,
        responses_schema.ModelResponse,
        responses_events.EVENTS,
        done=False,
    ),
    _count(
        "/v1/responses/input_tokens",
        "How many tokens the prompt of a response would have",
        responses_schema.ResponsesRequest,
        input_tokens.InputTokens,
        (errors.UnsupportedParameter,),
    ),
    _count(
        "/tokenize",
        "The tokens of a prompt or of messages, in vLLM's words",
        tokenize.TokenizeRequest,
        tokenize.Tokens,
    ),
    _count("/detokenize", "The text of tokens, in vLLM's words", tokenize.DetokenizeRequest, tokenize.Prompt),
    _look("/v1/models", "Models", "The base and its adapters, as far as your key opens them", {200: schema.ModelList}),
    _look("/v1/models/{id}", "Models", "One model", {200: schema.ModelCard}, MISSING),
    _adapter("GET", "/v1/adapters", "Every load of every adapter, and how it is", {200: adapters.AdapterList}),
    _adapter("GET", "/v1/adapters/{name}", "The newest load of one adapter", CARD, MISSING),
    _adapter(
        "PUT",
        "/v1/adapters/{name}",
        "Load an adapter, or put another in its place, from a folder, the hub or uploaded files",
        CARD | {201: adapters.AdapterCard},
        LOAD,
        adapters.AdapterSource,
        files=True,
    ),
    _adapter(
        "PATCH",
        "/v1/adapters/{name}",
        "Set aliases, description, sampling defaults, priority or concurrency of an adapter, or pin it",
        CARD,
        (*BODY, errors.ModelNotFound, errors.StorageFailed),
        adapters.AdapterChange,
    ),
    _adapter("DELETE", "/v1/adapters/{name}", "Unload an adapter; requests under way end on it", CARD, UNLOAD),
    _adapter(
        "POST",
        "/v1/load_lora_adapter",
        "Load an adapter, in vLLM's words",
        SAID,
        LOAD,
        adapters.LoadLoraAdapter,
        foreign_errors=True,
    ),
    _adapter(
        "POST",
        "/v1/unload_lora_adapter",
        "Unload an adapter, in vLLM's words",
        SAID,
        (*BODY, *UNLOAD),
        adapters.UnloadLoraAdapter,
        foreign_errors=True,
    ),
    _look(
        "/health",
        "Operations",
        "200 while the server can mend itself, 503 once it cannot",
        {200: operations.Health, 503: operations.Health},
    ),
    _look(
        "/ready",
        "Operations",
        "200 while requests are answered at once, 503 while the engine is down or starts again",
        {200: operations.Ready, 503: operations.Ready},
    ),
    _look("/metrics", "Operations", "Prometheus metrics", SAID),
    _look("/version", "Operations", "Versions, and what runs", {200: operations.Version}),
    _look("/openapi.json", "Operations", "This document", {200: Text("application/json")}),
    _look("/docs", "Operations", "This document as a page", {200: Text("text/html")}),
)
