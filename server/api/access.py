"""Who may do what: the key of a request, and what it opens."""

from __future__ import annotations

from starlette.requests import Request

from loraplex.server.errors import Forbidden, InvalidRequest, ModelNotFound
from loraplex.server.keys import Key
from loraplex.server.record import current
from loraplex.server.serving import Serving, serving


def key_of(request: Request) -> Key | None:
    """The key of a request; None on a server without keys. Raises Unauthorized.

    Each POST counts towards the key's requests a minute, answered or refused. Raises RateLimited.
    """
    keys = serving(request).keys
    if keys is None:
        return None
    key = keys.authenticate(request.headers.get("authorization", ""))
    if record := current():
        record.key, record.rate = key, keys.rate(key)
        if request.method == "POST":
            record.rate.take_request()
    return key


async def find_model(server: Serving, key: Key | None, given: str | None) -> str:
    """The name of the model that a request is for, which is loaded if it is not ready yet and --adapter-dir has it.

    Raises InvalidRequest where none was given and the server has no default, and ModelNotFound where the key does not
    open it, in the same words whether there is such a model or not.
    """
    model = given or server.settings.default_model
    if model is None:
        raise InvalidRequest("Missing required parameter: model", param="model")
    if key is not None and not key.may_use(server.registry.options.plain(model)):
        raise ModelNotFound(f"The model {model!r} does not exist or your key does not open it", param="model")
    if server.adapter_dir and not server.registry.serves(model):
        await server.adapter_dir.seek(server.registry.options.plain(model))
    return model


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
