"""What a run of `loraplex bench serve` was asked for."""

from __future__ import annotations

import math

from msgspec import Struct


class Configuration(Struct, kw_only=True):
    """What was asked for. The fields to `ramp_up_end_rps` are vLLM's, the others ours."""

    date: str = ""
    """%Y%m%d-%H%M%S, local time."""
    backend: str = "openai"
    label: str | None = None
    model_id: str = ""
    tokenizer_id: str | None = None
    num_prompts: int = 0
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ramp_up_strategy: str | None = None
    ramp_up_start_rps: int | None = None
    ramp_up_end_rps: int | None = None
    command: str = ""
    """The command line, without keys."""
    url: str = ""
    server: dict[str, str] = {}
    """What its /version says, as far as it is text or a number; versions of packages by their names."""
    machine: dict[str, str] = {}
    """The one that the client runs on, which is the server's too where the URL is of loopback."""
    dataset: str = ""
    seed: int = 0
    adapters: list[str] = []
    adapter_mix: str = ""
    goodput: dict[str, float] = {}
    """Objectives in milliseconds by metric, or by ADAPTER:METRIC where they are an adapter's own."""
    max_seconds: float | None = None
    """After which no other request was sent."""
    multi_turn: bool = False
    """Whether conversations were had; then `num_prompts` and the rates are of conversations."""
    multi_turn_concurrency: int | None = None
    """How many of them at the same time."""
    multi_turn_delay_ms: float = 0.0
    """From an answer to the next turn."""
