"""What an operator can set, with its limits. Flags of `loraplex serve` and LORAPLEX_* variables both end up here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import psutil
from cyclopts import Parameter
from cyclopts.validators import Number

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]


def physical_cores() -> int:
    """Cores this process may run on; hyperthreads do not count, since decoding waits for memory, not for arithmetic."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server; immutable once it runs."""

    host: str = "127.0.0.1"
    "Address to listen on; 0.0.0.0 for every interface."

    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000
    "Port to listen on; 0 picks a free one."

    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Where the model runs; auto is cuda where the installed onnxruntime-genai and the machine have it."

    engine: Literal["auto", "generator", "batched"] = "auto"
    "How sequences run: batched computes one token of all of them at once (CPU), generator one after another."

    threads: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    "CPU threads of the engine; 0 takes every physical core."

    max_running: AtLeastOne = 16
    "Sequences that are decoded at the same time; more wait in the queue."

    max_waiting: Annotated[int, Parameter(validator=Number(gte=0))] = 256
    "Sequences that may wait; beyond that a request is answered 429 with Retry-After."

    max_model_len: AtLeastOne | None = None
    "Longest sequence, prompt and answer together, in tokens; unset, what the base was made for."

    default_max_tokens: AtLeastOne = 2048
    "Longest chat answer where a request sets no max_tokens; the KV cache is reserved for it."

    prefill_chunk: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    "Prompt tokens computed at once; running streams wait for one such chunk at a time; 0 leaves it to the engine."

    kv_cache_mib: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    "Memory for keys and values of the batched engine, in MiB; 0 takes half of what is free at start."

    max_body_bytes: AtLeastOne = 4 * 1024 * 1024
    "Largest request body; beyond that a request is answered 413."

    drain_timeout: Annotated[int, Parameter(validator=Number(gte=0))] = 30
    "Seconds that running requests get to finish after SIGTERM; then they end with an error."

    strict: bool = False
    "Refuse to start if any adapter is broken, instead of starting without it."

    telemetry: bool = False
    "Let onnxruntime-genai send usage data to its makers."

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    "How much is logged."

    @property
    def stop_timeout(self) -> int:
        """Seconds from SIGTERM until connections are closed, whatever still runs: past the drain, requests get a moment
        to say that they end."""
        return self.drain_timeout + 2

    def engine_threads(self) -> int:
        """CPU threads the engine gets."""
        return self.threads or physical_cores()
