"""A streamed answer as it comes: server-sent events to tokens and their times.

A chunk carries a token if it has text, or if it is neither the first of a chat answer, which only names the role, nor
the last, which only names why it ended. vLLM's benchmark counts those two as tokens as well.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

DATA = b"data:"
DONE = b"[DONE]"


class Delta(Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class PromptTokensDetails(Struct):
    cached_tokens: int | None = None


class Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorEvent(Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class Chunk(Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: ErrorEvent | str | None = None


_decoder = msgspec.json.Decoder(Chunk)


class Answer:
    """One answer. Times are those that `feed` is given."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """When each chunk with a token came."""
        self.ended: float | None = None
        """When the last chunk with a choice came."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: ErrorEvent | None = None
        """Of an error event."""
        self.done = False
        """Whether `[DONE]` came."""
        self.events = 0
        """Lines with data, whatever they had."""
        self.thinking = 0
        """Characters of the text that were reasoning, which comes before what is said."""
        self._pieces: list[str] = []
        self._rest = b""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def complete(self) -> bool:
        return self.done or self.finish_reason is not None

    def feed(self, data: bytes, now: float) -> int:
        """Take what was read; returns how many chunks with tokens it had.

        Raises msgspec.DecodeError, or UnicodeDecodeError for what is not UTF-8.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        before = len(self.times)
        for line in lines:
            if line.startswith(DATA):
                self.events += 1
                self._event(line[len(DATA) :].strip(), now)
        return len(self.times) - before

    def _event(self, content: bytes, now: float) -> None:
        if content == DONE:
            self.done = True
            return
        chunk = _decoder.decode(content)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.error is not None:
            self.error = ErrorEvent(chunk.error) if isinstance(chunk.error, str) else chunk.error
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        delta = choice.delta
        text: str | None
        if delta is None:
            text, opens = choice.text, False
        else:
            text = delta.content or delta.reasoning_content or delta.reasoning
            opens = delta.role is not None and not delta.tool_calls
        if text:
            self._pieces.append(text)
            if delta is not None and not delta.content:
                self.thinking += len(text)
        closes = choice.finish_reason is not None and not (delta and delta.tool_calls)
        if text or not (opens or closes):
            self.times.append(now)
        if not opens or text or closes:
            self.ended = now
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason
