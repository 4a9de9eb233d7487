"""What the chunks of one streamed answer have in common, encoded once, and those that are nothing but text."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from loraplex.server.api.stream import Write
from loraplex.server.generation import Delta

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


class TextChunks(ABC):
    """Chunks of one choice, nearly all of which are nothing but text. What the others tell, an endpoint says."""

    # As in `engine/stream.py`: what is touched for an output is most of what it costs.
    __slots__ = ("_plain", "_write")

    def __init__(self, write: Write) -> None:
        self._write = write
        self._plain: Texts | None = None
        """Makes those chunks; None where all of them tell more."""

    def take(self, delta: Delta) -> None:
        """Write what a delta makes of the stream."""
        if self._plain is None or delta.finish:
            self._write(self._events(delta), delta.more)
        else:
            self._write(self._plain.event(delta.text) if delta.text else b"", delta.more)

    @abstractmethod
    def _events(self, delta: Delta) -> bytes:
        """The events of the last delta, and of any where there is no `_plain`."""
