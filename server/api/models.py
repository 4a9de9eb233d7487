"""GET /v1/models and /v1/models/{id}: the base and its adapters."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from loraplex.server.api.schema import ModelCard, ModelList
from loraplex.server.api.stream import json_response
from loraplex.server.registry import Model
from loraplex.server.serving import Serving, serving


async def list_models(request: Request) -> Response:
    server = serving(request)
    return json_response(ModelList([_card(server, model) for model in server.registry]))


async def get_model(request: Request) -> Response:
    server = serving(request)
    return json_response(_card(server, server.registry.get(request.path_params["id"])))


def _card(server: Serving, model: Model) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        root=model.root,
        parent=None if model.adapter is None else server.registry.base.name,
        max_model_len=server.context_length,
        description=model.description,
    )
