"""One prompt, wherever it comes from."""

from __future__ import annotations

from msgspec import Struct


class Prompt(Struct, frozen=True, kw_only=True):
    content: str | list[int]
    """Text, or token ids for /v1/completions."""
    tokens: int = 0
    """Its length by the client's tokenizer; 0 where there is none. Results have the server's count instead."""
    output_tokens: int
    """To ask for."""
    model: str | None = None
    """What to ask for it; None leaves that to the adapter mix."""
    at: float | None = None
    """Seconds from the beginning of the run; None leaves that to the arrival process."""
