"""What is known of one request while it is answered, for its log line, its trace, its limits and its metrics.

Each request runs in a context of its own, where `current()` finds its record: log lines of any module get its id.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from loraplex.server.keys import Key
from loraplex.server.limits import Rate


@dataclass
class SequenceRecord:
    """One sequence, in seconds of time.perf_counter()."""

    prompt_tokens: int
    entered: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    tokens: int = 0
    cached_tokens: int = 0
    finish: str = ""


@dataclass
class RequestRecord:
    """One HTTP request."""

    id: str
    method: str = ""
    path: str = ""
    """As it came, percent-encoded, without the query."""
    traceparent: dict[str, str] = field(default_factory=dict)
    """W3C trace context headers."""
    arrived: float = field(default_factory=time.perf_counter)
    """time.perf_counter()."""
    key: Key | None = None
    rate: Rate | None = None
    adapter: str = ""
    status: int = 0
    code: str | None = None
    """Of the error that was answered."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    sequences: list[SequenceRecord] = field(default_factory=list)

    @property
    def key_class(self) -> str:
        return self.key.service_class if self.key else "none"

    def check_prompt(self, tokens: int) -> None:
        """Raises RateLimited where the key has no tokens left for a prompt of so many."""
        if self.rate:
            self.rate.check_tokens(tokens)

    def take_prompt(self, adapter: str, tokens: int) -> None:
        """Count the prompt of a request that was taken on."""
        self.adapter = adapter
        self.prompt_tokens = tokens
        if self.rate:
            self.rate.spend_tokens(tokens)

    def take_tokens(self, generated: int) -> None:
        """Count generated tokens."""
        self.generated_tokens += generated
        if self.rate:
            self.rate.spend_tokens(generated)

    def finishes(self) -> list[str]:
        """How its sequences ended, each way once."""
        return sorted({sequence.finish for sequence in self.sequences if sequence.finish})

    def queue_seconds(self) -> float | None:
        """The longest that one of its sequences waited for a slot."""
        waits = [sequence.admitted - sequence.entered for sequence in self.sequences if sequence.admitted]
        return max(waits, default=None)

    def first_token_seconds(self) -> float | None:
        """From the request's arrival to the first token of any of its sequences."""
        firsts = [sequence.first_token - self.arrived for sequence in self.sequences if sequence.first_token]
        return min(firsts, default=None)


_current: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def enter(record: RequestRecord) -> None:
    """Make this the record of the running context."""
    _current.set(record)


def current() -> RequestRecord | None:
    """The record of the request that this runs for; None outside of requests."""
    return _current.get()
