"""Calls of tools out of an answer's text, as it arrives."""

from __future__ import annotations

import re

from msgspec import Struct

from loraplex.server.text.overlap import overlap
from loraplex.server.text.tool_format import ToolFormat


class CallBegun(Struct, frozen=True):
    """The model calls a tool."""

    call: int
    """0 for the answer's first."""
    name: str


class ArgumentsText(Struct, frozen=True):
    """A piece of a call's arguments, which are JSON once all are there."""

    call: int
    text: str


Piece = str | CallBegun | ArgumentsText
"""Text of the answer is a string."""


class ToolParser:
    """Reads one answer. What it makes of it does not depend on how the text was cut into pieces."""

    def __init__(self, wanted: ToolFormat) -> None:
        self._format = wanted
        self._header = re.compile(wanted.header)
        self._held = ""
        self._state = self._text
        self._calls = 0
        self._arguments = _Object()

    @property
    def complete(self) -> bool:
        """The answer has calls, and the last of them all its arguments."""
        return self._calls > 0 and self._state != self._in_arguments

    def feed(self, text: str) -> list[Piece]:
        """What this text completes; what may still become part of a call's frame waits."""
        self._held += text
        pieces: list[Piece] = []
        while (piece := self._state()) is not None:
            if piece != "":
                pieces.append(piece)
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back of the text, once no more comes. What is left of a call's frame is dropped."""
        held, self._held = self._held, ""
        return [held] if held and self._state == self._text else []

    # Each state takes what it can off the held text: a piece, "" where there may be more, None to wait for more.

    def _text(self) -> Piece | None:
        trigger = self._format.trigger
        if self._format.at_start:
            if not self._held:
                return None
            self._state = self._between if self._held.startswith(trigger) else self._plain
            return ""
        at = self._held.find(trigger)
        if at >= 0:
            text, self._held = self._held[:at], self._held[at:]
            self._state = self._between
            return text
        keep = overlap(self._held, trigger)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text or None

    def _plain(self) -> Piece | None:
        text, self._held = self._held, ""
        return text or None

    def _between(self) -> Piece | None:
        """In the frame of a call: waits for its name and the beginning of its arguments."""
        found = self._header.search(self._held)
        if found is None:
            return None
        self._held = self._held[found.end() :]
        self._state = self._in_arguments
        self._arguments = _Object()
        self._calls += 1
        return CallBegun(self._calls - 1, found["name"])

    def _in_arguments(self) -> Piece | None:
        if not self._held:
            return None
        taken = self._arguments.take(self._held)
        text, self._held = self._held[:taken], self._held[taken:]
        if self._arguments.complete:
            self._state = self._between
        return ArgumentsText(self._calls - 1, text) if text else ""


class _Object:
    """Finds the end of a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.complete = False

    def take(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return index + 1
        return len(text)
