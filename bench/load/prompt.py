"""One prompt, wherever it comes from."""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, frozen=True):
    """One of a chat."""

    role: str
    content: str


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
    """Seconds from the beginning of the run; None leaves that to the arrival process. Of a later turn: seconds from
    the answer before it."""
    before: tuple[Message, ...] = ()
    """Messages of a chat between the last answer and this one, such as a system prompt."""
    then: tuple[Prompt, ...] | None = None
    """What is asked next in the conversation that it begins, in order; None of a prompt that begins none."""
