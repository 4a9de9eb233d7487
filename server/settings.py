"""What an operator can set, with its limits. Flags of `loraplex serve` and LORAPLEX_* variables both end up here."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from loraplex.server.machine import physical_cores

if sys.platform != "win32":
    import resource

PREFIX = "LORAPLEX_"
"""Of environment variables: LORAPLEX_MAX_RUNNING is --max-running."""

RESERVED_FILES = 128
"""Open files that are no connections of clients: logs, pipes, uploads, a connection that is being refused."""

ENDPOINT = "http://localhost:4318"
"""Where an OpenTelemetry collector listens unless told otherwise."""

MOST_THREADS = 1024
"""More than any machine has cores. Each takes memory, and with too many onnxruntime crashes."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
"""As browsers write it, in lower case."""

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]
Amount = Annotated[int, Parameter(validator=Number(gte=0, lte=2**31 - 1))]
"""More MiB than a machine has and tokens than a context has; what no 64 bits hold would not reach the engine."""


def _check_text(_type: object, text: str) -> None:
    """Raises ValueError. A variable that is set to nothing would mean every interface, or the folder one is in."""
    if not text:
        raise ValueError("It is empty: leave it out instead.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("It is not UTF-8.") from None


def _check_endpoint(_type: object, text: str | None) -> None:
    """Raises ValueError where nothing could be sent to this base URL: an exporter would say so with every batch."""
    if not text:
        return
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"It is no http:// or https:// URL: give one such as {ENDPOINT}.")
    try:
        # urlsplit passes over line breaks and the like.
        if not text.isprintable() or " " in text:
            raise ValueError("there is white space in it")
        url = urlsplit(text)
        if not url.hostname:
            raise ValueError("it has no host")
        if url.port == 0:
            raise ValueError("no collector has port 0")
        if url.query or url.fragment:
            raise ValueError("/v1/traces is put behind it, so nothing may follow its path")
    except ValueError as error:
        raise ValueError(f"It cannot be used ({error}): give a URL such as {ENDPOINT}.") from None


def _check_origins(_type: object, origins: Sequence[str]) -> None:
    """Raises ValueError for what no browser sends as the origin of a page (RFC 6454, 6.2)."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: give such as https://chat.example.com, without a path, or *.")


def _check_together(_type: object, settings: Settings | None) -> None:
    """Raises ValueError for settings that are each right and cannot be together."""
    if settings is None:
        return
    if settings.dev and not settings.on_loopback:
        raise ValueError(f"--dev lets anyone who reaches {settings.host} manage adapters: use --keys there.")
    if settings.dev and "*" in settings.allowed_origins:
        raise ValueError("--dev lets pages of --allowed-origins manage adapters: name them instead of *.")
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise ValueError("--ssl-keyfile needs --ssl-certfile.")
    if settings.engine == "batched" and settings.device == "cuda":
        raise ValueError("--engine batched runs on the CPU: add --device cpu, or leave the engine to auto.")
    if settings.state_dir and settings.adapter_dir:
        state, watched = (Path(os.path.realpath(folder)) for folder in (settings.state_dir, settings.adapter_dir))
        if watched.is_relative_to(state):  # where a start deletes what is not its own
            raise ValueError(f"--adapter-dir {watched} lies in --state-dir {state}: give each a folder of its own.")


def _to_path(_type: object, tokens: Sequence[Token]) -> Path:
    (token,) = tokens
    _check_text(_type, token.value)
    return Path(token.value)


NonEmptyPath = Annotated[Path, Parameter(converter=_to_path)]


@Parameter(name="*", validator=_check_together)
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server; immutable once it runs."""

    host: Annotated[str, Parameter(validator=_check_text)] = "127.0.0.1"
    "Address to listen on; 0.0.0.0 for every interface."

    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000
    "Port to listen on; 0 picks a free one."

    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Where the model runs; auto is cuda where the installed onnxruntime-genai is made for it and there is a GPU."

    engine: Literal["auto", "routed", "generator", "batched"] = "auto"
    "How sequences run: routed (CUDA) and batched (CPU) compute a token of all at once, generator one after another."

    threads: Annotated[int, Parameter(validator=Number(gte=0, lte=MOST_THREADS))] = 0
    "CPU threads of the engine; 0 takes every physical core, within a container's limit."

    max_running: Annotated[int, Parameter(validator=Number(gte=0, lte=256))] = 0
    "Sequences that are decoded at the same time; more wait in the queue; 0 is 64 on the routed engine, 16 on others."

    default_model: str | None = None
    "Adapter or base of requests that name no model; unset, they are refused."

    max_waiting: Annotated[int, Parameter(validator=Number(gte=0))] = 256
    "Sequences that may wait; beyond that a request is answered 429 with Retry-After."

    max_waiting_tokens: AtLeastOne | None = None
    "Tokens that the prompts of waiting sequences may have together; unset, only --max-waiting counts."

    request_timeout: Annotated[float, Parameter(validator=Number(gt=0))] | None = None
    "Seconds from a request's arrival to the end of its answer, at most; then it ends with an error. Unset, no limit."

    engine_timeout: Annotated[float, Parameter(validator=Number(gte=0))] = 300.0
    "Seconds that one step of the engine may take; an engine that takes longer is started again; 0 is no limit."

    max_model_len: AtLeastOne | None = None
    "Longest sequence, prompt and answer together, in tokens; unset, what the base was made for."

    default_max_tokens: AtLeastOne = 2048
    "Longest chat answer where a request sets no max_tokens; the KV cache is reserved for it."

    prefill_chunk: Amount = 0
    "Prompt tokens computed at once; running streams wait for one such chunk at a time; 0 leaves it to the engine."

    kv_cache_mib: Amount = 0
    "Memory for keys and values, in MiB; 0 takes half of what is free at start, 40 % of it on a GPU."

    weights: Literal["auto", "int4", "float16"] = "auto"
    "Of the routed engine's base: float16 serves many at once faster, with the same values and 4 times the memory."

    max_linked: Annotated[int, Parameter(validator=Number(gte=0, lte=2047))] = 0
    "Adapters in the memory of the routed engine; others are copied there when asked for; 0 is as many as run."

    prefix_cache: bool = True
    "Keep the routed engine's KV cache of earlier prompts for those that begin the same, with the same adapter."

    cuda_graphs: bool = True
    "Replay a step's kernel launches instead of repeating them; costs a capture for each batch size."

    link_cache: NonEmptyPath | None = None
    "Folder for what the routed engine makes of the base; unset, .cache in the bundle, or your cache folder."

    keys: NonEmptyPath | None = None
    "TOML file of API keys (see docs/api.md); without it anyone who reaches the server may ask it."

    dev: bool = False
    "Let anyone manage adapters, on a loopback address only."

    allowed_origins: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, negative="", show_default=False, validator=_check_origins),
    ] = ()
    "Web pages that browsers let ask this server, such as https://chat.example.com; * is every page."

    adapter_dir: NonEmptyPath | None = None
    "Folder that adapters are loaded from while the server runs: those that appear in it, and those asked for."

    allow_hub: bool = False
    "Let adapters be loaded from the Hugging Face hub by their id, with the token of this server's environment."

    state_dir: NonEmptyPath | None = None
    "Folder for adapters that were loaded while the server ran, so that they are there after a restart."

    max_adapter_bytes: AtLeastOne = 2**30
    "Largest adapter that may be loaded while the server runs."

    max_connections: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    "Open connections; one more is answered 503; 0 is what the limit of open files leaves room for."

    max_body_bytes: AtLeastOne = 4 * 1024 * 1024
    "Largest request body; beyond that a request is answered 413."

    drain_timeout: Annotated[int, Parameter(validator=Number(gte=0))] = 30
    "Seconds that running requests get to finish after SIGTERM; then they end with an error."

    strict: bool = False
    "Refuse to start if any adapter is broken, instead of starting without it."

    telemetry: bool = False
    "Let onnxruntime-genai send usage data to its makers."

    ssl_certfile: NonEmptyPath | None = None
    "PEM file of the server's certificate and its chain: answer HTTPS instead of HTTP."

    ssl_keyfile: NonEmptyPath | None = None
    "PEM file of the certificate's key, where it is not in the same file."

    otlp_endpoint: Annotated[str | None, Parameter(validator=_check_endpoint)] = None
    "Where traces go: the base URL of an OpenTelemetry collector, such as http://localhost:4318. Needs loraplex[otel]."

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    "How much is logged."

    log_format: Literal["console", "json"] = "console"
    "Log lines for people, or JSON objects for machines."

    @property
    def stop_timeout(self) -> int:
        """Seconds from SIGTERM until connections are closed, whatever still runs: past the drain, requests get a moment
        to say that they end."""
        return self.drain_timeout + 2

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def connection_limit(self) -> int | None:
        """Connections that may be open; None where the system sets no limit."""
        if self.max_connections or sys.platform == "win32":
            return self.max_connections or None
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if files == resource.RLIM_INFINITY else max(1, files - RESERVED_FILES)

    def engine_threads(self) -> int:
        """CPU threads the engine gets."""
        return self.threads or physical_cores()


def check_environment(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that has our prefix and is no setting, such as a misspelt one."""
    known = [field.name.upper() for field in fields(Settings)]
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in (*known, "BUNDLE"):
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{variable} is no setting and has no effect" + (f": did you mean {PREFIX}{near[0]}?" if near else "")
