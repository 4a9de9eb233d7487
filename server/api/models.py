"""GET /v1/models and /v1/models/{id}: the base and its adapters."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.access import find_model, key_of
from loraplex.server.api.schema import ModelCard, ModelList
from loraplex.server.api.stream import json_response
from loraplex.server.model import Model
from loraplex.server.serving import Serving, serving


async def list_models(request: Request) -> Response:
    server, key = serving(request), key_of(request)
    models = [model for model in server.registry if key is None or key.may_use(model.name)]
    cards = [_card(server, model) for model in models]
    cards += [_card(server, model, alias) for model in models for alias in model.options.aliases]
    return json_response(ModelList(cards))


async def get_model(request: Request) -> Response:
    server, wanted = serving(request), request.path_params["id"]
    name = await find_model(server, key_of(request), wanted)
    return json_response(_card(server, server.registry.get(name)))


def _card(server: Serving, model: Model, alias: str | None = None) -> ModelCard:
    return ModelCard(
        id=alias or model.name,
        created=model.created,
        root=model.name if alias else model.root,
        parent=None if model.adapter is None else server.registry.base.name,
        max_model_len=server.context_length,
        description=model.description,
    )
