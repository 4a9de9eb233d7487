"""Every error that can reach a user: each class is one HTTP status and one error code.

The shape on the wire is OpenAI's: {"error": {"message", "type", "param", "code"}}.

What a class says of itself is what docs/api.md says of its code.
"""

from __future__ import annotations

from typing import ClassVar


class LoraplexError(Exception):
    """Base of all errors that carry a message for a user. `param` names the request field at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    wait: ClassVar[int | None] = None
    """Seconds after which a retry makes sense, where nothing better is known; None: clients decide."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: int | None = None, permanent: bool = False
    ) -> None:
        """`permanent`: the same request will never be answered, so that clients should not try again."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.permanent = permanent
        self.retry_after = None if permanent else retry_after or self.wait
        """Seconds after which a retry makes sense; None where nothing is known, or it never does."""


class InvalidRequest(LoraplexError):
    """A field is missing, of the wrong type or out of range; `param` names it, as in `messages[0].role`."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or it and `max_tokens`, are longer than the context, or it than the KV cache; both are named."""

    code = "context_length_exceeded"


class MalformedJSON(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class UnknownParameter(InvalidRequest):
    """There is no such field."""

    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    """A field that this server, or the engine that it runs, cannot honour."""

    code = "unsupported_parameter"


class InvalidHTTP(InvalidRequest):
    """What came is not HTTP."""

    code = "invalid_http"


class Unauthorized(LoraplexError):
    """No key, or none that is known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(LoraplexError):
    """Not with this key, these settings, or this path."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelNotFound(LoraplexError):
    """No such model or adapter, or one that was refused, with the reason."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(LoraplexError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(LoraplexError):
    """The path has other methods; `allow` names them."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooSlow(LoraplexError):
    """The body was not there in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class AdapterBusy(LoraplexError):
    """Another request is loading this adapter."""

    status = 409
    type = "invalid_request_error"
    code = "adapter_busy"
    wait = 1


class BodyTooLarge(LoraplexError):
    """The body is over `--max-body-bytes`, or an upload over `--max-adapter-bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class AdapterInvalid(LoraplexError):
    """An adapter fails the checks that are made before it is loaded; the message says which."""

    status = 422
    type = "invalid_request_error"
    code = "adapter_invalid"


class QueueFull(LoraplexError):
    """Over `--max-waiting` or `--max-waiting-tokens`; `retry-after` says when a place is likely."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    wait = 1


class RateLimited(LoraplexError):
    """Over the key's requests or tokens a minute; `retry-after` says when there are enough again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    wait = 1


class HeadersTooLarge(LoraplexError):
    """Request line and headers are over 64 KiB."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Internal(LoraplexError):
    """Anything unforeseen; the log has the traceback, the client does not."""

    code = "internal"


class EngineFailed(LoraplexError):
    """The engine failed on this request, or died or hung under it."""

    status = 500
    code = "engine_failed"


class HubFailed(LoraplexError):
    """The hub could not be reached, or broke off."""

    status = 502
    code = "hub_failed"
    wait = 5


class NotReady(LoraplexError):
    """The engine is down, or the server is shutting down."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"
    wait = 5


class TooManyConnections(LoraplexError):
    """More than `--max-connections` connections are open."""

    status = 503
    type = "service_unavailable_error"
    code = "too_many_connections"
    wait = 1


class DeadlineExceeded(LoraplexError):
    """The request's `timeout`, or `--request-timeout`, was over before the answer was."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class StorageFailed(LoraplexError):
    """An adapter could not be written to disk."""

    status = 507
    code = "storage_failed"


class CannotStart(LoraplexError):
    """Never on the wire: the server, or the command, ends with it."""


class BundleInvalid(CannotStart):
    code = "bundle_invalid"


class StateInvalid(CannotStart):
    code = "state_invalid"


class KeysInvalid(CannotStart):
    code = "keys_invalid"


class CannotListen(CannotStart):
    code = "cannot_listen"


class TracingUnavailable(CannotStart):
    code = "tracing_unavailable"
