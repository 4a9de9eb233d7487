"""One choice of an answer as text and calls of tools."""

from __future__ import annotations

from collections import defaultdict

from msgspec import Struct

from loraplex.server.api.answer import Choice
from loraplex.server.api.conversation import FunctionCall, ToolCall
from loraplex.server.generation import Delta
from loraplex.server.text.tool_format import ToolFormat
from loraplex.server.text.tool_parser import ArgumentsText, CallBegun, Piece, ToolParser


class Reading:
    """Reads one choice as it comes. Without a format all of it is text."""

    def __init__(self, tool_format: ToolFormat | None) -> None:
        self._format = tool_format
        self._parser = ToolParser(tool_format) if tool_format else None

    def read(self, delta: Delta) -> tuple[list[Piece], str | None]:
        """What this delta adds, and why the answer ended if it did."""
        if self._parser is None:
            return [delta.text] if delta.text else [], delta.finish
        pieces = self._parser.feed(delta.text)
        if delta.finish:
            pieces += self._parser.flush()
        return pieces, "tool_calls" if delta.finish == "stop" and self._parser.complete else delta.finish

    def call_id(self) -> str:
        assert self._format is not None
        return self._format.call_id()


class Whole(Struct, frozen=True):
    """One choice, whole."""

    text: str
    calls: list[ToolCall]
    finish: str


def whole(tool_format: ToolFormat | None, choice: Choice) -> Whole:
    """What a whole choice says."""
    reading = Reading(tool_format)
    pieces, finish = reading.read(Delta(choice.text, choice.tokens, choice.finish))
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    said: dict[int, str] = defaultdict(str)
    for piece in pieces:
        if isinstance(piece, ArgumentsText):
            said[piece.call] += piece.text
    calls = [
        ToolCall(reading.call_id(), FunctionCall(piece.name, said[piece.call]))
        for piece in pieces
        if isinstance(piece, CallBegun)
    ]
    return Whole(text, calls, finish or choice.finish)
