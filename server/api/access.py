"""Who may do what: the key of a request, and what it opens."""

from __future__ import annotations

from starlette.requests import Request

from loraplex.server.errors import Forbidden, ModelNotFound
from loraplex.server.keys import Key
from loraplex.server.serving import serving


def key_of(request: Request) -> Key | None:
    """The key of a request; None on a server without keys. Raises Unauthorized."""
    keys = serving(request).keys
    return None if keys is None else keys.authenticate(request.headers.get("authorization", ""))


def check_model(key: Key | None, model: str) -> None:
    """Raises ModelNotFound, in the same words whether there is such a model or not."""
    if key is not None and not key.may_use(model):
        raise ModelNotFound(f"The model {model!r} does not exist or your key does not open it", param="model")


def check_admin(request: Request) -> None:
    """Raises Unauthorized or Forbidden unless this request may manage adapters."""
    key = key_of(request)
    settings = serving(request).settings
    if key is not None:
        if not key.admin:
            raise Forbidden("This takes a key with admin = true")
    elif not (settings.dev and settings.on_loopback):
        raise Forbidden(
            "Managing adapters takes an admin key: start the server with --keys FILE, or --dev on a loopback address"
        )
