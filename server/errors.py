"""Every error that can reach a user: each class is one HTTP status and one error code.

The shape on the wire is OpenAI's: {"error": {"message", "type", "param", "code"}}.

    LoraplexError
    ├── InvalidRequest            400  a field is missing, of the wrong type or out of range
    │   ├── ContextLengthExceeded 400
    │   ├── MalformedJSON         400
    │   ├── UnknownParameter      400  no such field
    │   └── UnsupportedParameter  400  a field that this server cannot honour
    ├── Unauthorized              401  no key, or none that is known
    ├── Forbidden                 403  the key, or the server's settings, do not allow this
    ├── ModelNotFound             404
    ├── BodyTooLarge              413
    ├── AdapterBusy               409  the adapter is being loaded by another request
    ├── AdapterInvalid            422  an adapter fails the checks made when it is loaded
    ├── QueueFull                 429
    ├── EngineFailed              500  the engine failed while it worked on this request
    ├── NotReady                  503  the engine is starting, or was restarted under this request
    ├── StorageFailed             507  an adapter cannot be written to disk
    ├── BundleInvalid                  never on the wire: the server does not start
    ├── StateInvalid                   likewise
    ├── KeysInvalid                    likewise
    └── CannotListen                   likewise
"""

from __future__ import annotations

from typing import ClassVar


class LoraplexError(Exception):
    """Base of all errors that carry a message for a user. `param` names the request field at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds after which a retry makes sense; None where it does not."""


class InvalidRequest(LoraplexError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class MalformedJSON(InvalidRequest):
    code = "invalid_json"


class UnknownParameter(InvalidRequest):
    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class Unauthorized(LoraplexError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(LoraplexError):
    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelNotFound(LoraplexError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLarge(LoraplexError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class AdapterBusy(LoraplexError):
    status = 409
    type = "invalid_request_error"
    code = "adapter_busy"


class AdapterInvalid(LoraplexError):
    status = 422
    type = "invalid_request_error"
    code = "adapter_invalid"


class QueueFull(LoraplexError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class EngineFailed(LoraplexError):
    status = 500
    code = "engine_failed"


class NotReady(LoraplexError):
    status = 503
    type = "service_unavailable_error"
    code = "not_ready"


class StorageFailed(LoraplexError):
    status = 507
    code = "storage_failed"


class BundleInvalid(LoraplexError):
    code = "bundle_invalid"


class StateInvalid(LoraplexError):
    code = "state_invalid"


class KeysInvalid(LoraplexError):
    code = "keys_invalid"


class CannotListen(LoraplexError):
    code = "cannot_listen"
