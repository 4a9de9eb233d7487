"""What the chunks of one streamed answer have in common, encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from loraplex.server.api.schema import (
    ChatChunkChoice,
    ChatCompletionChunk,
    Completion,
    CompletionChoice,
    Usage,
)

_CHOICES = b'"choices":['
"""No text of a field can look like it: there the quotation marks are escaped."""

TEXT = "\0"
"""Stands for a text that is not known yet."""

_encoder = msgspec.json.Encoder()
_encode = _encoder.encode


class Envelope:
    """Makes events of choices, each what msgspec would make of the whole chunk."""

    def __init__(self, empty: ChatCompletionChunk | Completion) -> None:
        """With a chunk that has no choices and no usage."""
        before, found, after = _encoder.encode(empty).partition(_CHOICES + b"]")
        assert found
        self._head = b"data: " + before + _CHOICES
        self._tail = after + b"\n\n"
        self._tails = {UNSET: b"]" + self._tail, None: b'],"usage":null' + self._tail}

    def event(
        self, choices: Sequence[ChatChunkChoice | CompletionChoice], usage: Usage | UnsetType | None = UNSET
    ) -> bytes:
        """One server-sent event."""
        inside = b",".join(map(_encoder.encode, choices))
        if isinstance(usage, Usage):
            return self._head + inside + b'],"usage":' + _encoder.encode(usage) + self._tail
        return self._head + inside + self._tails[usage]

    def texts(self, choice: ChatChunkChoice | CompletionChoice, usage: UnsetType | None = UNSET) -> Texts:
        """Makes events of this choice, with a text in the place of TEXT, in a quarter of the time."""
        before, found, after = _encoder.encode(choice).partition(_encoder.encode(TEXT))
        assert found
        return Texts(self._head + before, after + self._tails[usage])


class Texts:
    """Events that differ in nothing but their text."""

    __slots__ = ("_head", "_tail")

    def __init__(self, head: bytes, tail: bytes) -> None:
        self._head = head
        self._tail = tail

    def event(self, text: str) -> bytes:
        """One server-sent event."""
        return b"%b%b%b" % (self._head, _encode(text), self._tail)
