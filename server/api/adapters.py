"""Adapters of a running server: /v1/adapters, and vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter.

vLLM's endpoints answer as its own do, texts and statuses included (vllm/entrypoints/openai/models/serving.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from loraplex.server.api.access import check_admin
from loraplex.server.api.body import decode
from loraplex.server.api.stream import json_response, unless_disconnected
from loraplex.server.api.upload import is_upload, receive
from loraplex.server.bundle import AdapterManifest, Base, Name, Positive, Sampling
from loraplex.server.errors import AdapterInvalid, Forbidden, InvalidRequest, ModelNotFound
from loraplex.server.hub_adapter import is_hub_id
from loraplex.server.model import Adapter, State
from loraplex.server.options import MAX_ALIASES, Options
from loraplex.server.rotation import Priority
from loraplex.server.serving import Serving, serving


class AdapterSource(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of PUT /v1/adapters/{name}: one of the two."""

    path: str | None = None
    """On the server, inside --adapter-dir; relative paths begin there."""
    hub: str | None = None
    """OWNER/NAME[@REVISION] on the Hugging Face hub; with --allow-hub only."""


class AdapterChange(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of PATCH /v1/adapters/{name}: fields of Options, of which those left out stay as they are."""

    aliases: Annotated[tuple[Name, ...], Meta(max_length=MAX_ALIASES)] | UnsetType = UNSET
    description: Annotated[str, Meta(max_length=4096)] | UnsetType | None = UNSET
    sampling: Sampling | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_running: Positive | UnsetType | None = UNSET
    pinned: bool | UnsetType = UNSET


class AdapterCard(Struct, frozen=True):
    """One load of an adapter."""

    name: str
    state: State
    source: str
    in_use: int
    """Requests that run or wait under it."""
    last_used: float | None
    """Unix time."""
    loaded: int | None = None
    """Unix time."""
    reason: str | None = None
    """Why it failed."""
    sha256: str | None = None
    dtype: str | None = None
    ranks: dict[str, int] | None = None
    """By projection; those without LoRA weights are absent."""
    bytes: int | None = None
    """Of its weights."""
    description: str | None = None
    options: Options = Options()
    object: str = "adapter"


class AdapterList(Struct, frozen=True):
    data: list[AdapterCard]
    object: str = "list"


class LoadLoraAdapter(Struct, frozen=True):
    """vLLM's body, whose unknown fields are ignored there too."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadLoraAdapter(Struct, frozen=True):
    lora_name: str = ""


async def list_adapters(request: Request) -> Response:
    check_admin(request)
    server = serving(request)
    return json_response(AdapterList([_card(server, adapter) for adapter in server.registry.adapters()]))


async def get_adapter(request: Request) -> Response:
    """The newest load of an adapter: the one that new requests get, if there is one."""
    check_admin(request)
    server, name = serving(request), request.path_params["name"]
    found = server.registry.adapters(name)
    if not found:
        raise ModelNotFound(f"The adapter {name!r} cannot be found", param="name")
    return json_response(_card(server, found[0]))


async def put_adapter(request: Request) -> Response:
    """Load an adapter, or put another in the place of one: from a folder, the hub, or the request's files."""
    check_admin(request)
    server, name = serving(request), request.path_params["name"]
    server.registry.check_name(name)
    known = server.registry.is_loaded(name)
    if is_upload(request):
        folder = server.store.place(name)
        try:
            await receive(request, folder, server.settings.max_adapter_bytes)
            adapter = await server.registry.load(name, folder, source="upload")
        finally:
            await asyncio.to_thread(server.store.drop, folder)
    else:
        body = await decode(request, AdapterSource, server.settings.max_body_bytes)
        if (body.path is None) == (body.hub is None):
            raise InvalidRequest("send either path or hub", param="path")
        if body.hub is not None:
            adapter = await _load_from_hub(request, name, body.hub)
        else:
            adapter = await _load_from_folder(server, name, body.path or "")
    return json_response(_card(server, adapter), 200 if known else 201)


async def patch_adapter(request: Request) -> Response:
    """Set some of an adapter's options; the others stay."""
    check_admin(request)
    server, name = serving(request), request.path_params["name"]
    change = await decode(request, AdapterChange, server.settings.max_body_bytes)
    given = {field: value for field, value in msgspec.structs.asdict(change).items() if value is not UNSET}
    return json_response(_card(server, await server.registry.change_options(name, given)))


async def delete_adapter(request: Request) -> Response:
    """Unload an adapter; requests that use it go on."""
    check_admin(request)
    server = serving(request)
    return json_response(_card(server, await server.registry.unload(request.path_params["name"])))


async def load_lora_adapter(request: Request) -> Response:
    check_admin(request)
    server = serving(request)
    body = await decode(request, LoadLoraAdapter, server.settings.max_body_bytes)
    name = body.lora_name
    if not name or not body.lora_path:
        return _vllm_error("Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput", 400)
    if not body.load_inplace and server.registry.is_loaded(name) and name not in server.registry.refused:
        return _vllm_error(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            "InvalidUserInput",
            400,
        )
    try:
        await _load_in_vllms_words(request, name, body.lora_path)
    except (AdapterInvalid, ModelNotFound) as error:
        missing = isinstance(error, ModelNotFound)
        return _vllm_error(error.message, "NotFoundError" if missing else "BadRequestError", 404 if missing else 400)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: Request) -> Response:
    check_admin(request)
    server = serving(request)
    name = (await decode(request, UnloadLoraAdapter, server.settings.max_body_bytes)).lora_name
    if not name:
        return _vllm_error("'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput", 400)
    try:
        await server.registry.unload(name)
    except ModelNotFound:
        return _vllm_error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _load_from_folder(server: Serving, name: str, path: str) -> Adapter:
    return await server.registry.load(name, _inside(server, path), source=path)


async def _load_from_hub(request: Request, name: str, given: str) -> Adapter:
    """Raises ClientDisconnect, with nothing changed, where nobody waits for the download any more."""
    server = serving(request)
    if not server.settings.allow_hub:
        raise Forbidden("Adapters are loaded from the hub only by a server that was started with --allow-hub")
    if not is_hub_id(given):
        raise InvalidRequest(f"{given} is not OWNER/NAME[@REVISION] of a repository on the hub", param="hub")
    server.registry.check_name(name)
    folder = server.store.place(name)
    try:
        fetch = server.hub.fetch(given, folder, server.settings.max_adapter_bytes)
        source = await unless_disconnected(request, fetch)
        return await server.registry.load(name, folder, source=source)
    finally:
        await asyncio.to_thread(server.store.drop, folder)


async def _load_in_vllms_words(request: Request, name: str, path: str) -> Adapter:
    """vLLM takes an id of the hub for a path."""
    server = serving(request)
    root = server.settings.adapter_dir
    if server.settings.allow_hub and is_hub_id(path) and not (root and (root / path).exists()):
        return await _load_from_hub(request, name, path)
    return await _load_from_folder(server, name, path)


def _vllm_error(message: str, kind: str, status: int) -> Response:
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


def _inside(server: Serving, given: str) -> Path:
    """The folder that a client names. Raises Forbidden outside --adapter-dir, ModelNotFound where there is none."""
    root = server.settings.adapter_dir
    if root is None:
        raise Forbidden("Adapters are loaded from --adapter-dir, and this server was started without it")
    try:
        # A path may be too long, or hold a zero byte.
        folder = (root / given).resolve()
        inside = folder.is_relative_to(root.resolve())
        found = inside and folder.is_dir()
    except (OSError, ValueError):
        found, inside = False, True
    if not inside:
        raise Forbidden(f"{given} lies outside the folder that adapters are loaded from")
    if not found:
        raise ModelNotFound(f"No adapter found for {given}: there is no such folder", param="path")
    return folder


def _weight_bytes(base: Base, manifest: AdapterManifest) -> int:
    values = sum(rank * sum(base.projections[projection]) for projection, rank in manifest.ranks.items())
    return values * (4 if manifest.dtype == "float32" else 2)


def _card(server: Serving, adapter: Adapter) -> AdapterCard:
    model = adapter.model
    manifest = model.manifest if model else None
    return AdapterCard(
        name=adapter.name,
        state=adapter.state,
        source=adapter.source,
        in_use=adapter.users,
        last_used=adapter.used,
        loaded=model.created if model else None,
        reason=adapter.reason or None,
        sha256=manifest.sha256 if manifest else None,
        dtype=manifest.dtype if manifest else None,
        ranks=manifest.ranks if manifest else None,
        bytes=_weight_bytes(server.bundle.manifest.base, manifest) if manifest else None,
        description=model.description if model else None,
        options=server.registry.options[adapter.name],
    )
