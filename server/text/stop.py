"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from loraplex.server.text.overlap import overlap


class StopStrings:
    """Passes text on up to the first stop string; text that may be the start of one waits for what follows.

    The stop string that is complete first wins, and of several complete at once the longest: the answer does not depend
    on how the text was cut into pieces.
    """

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        """`include` gives out the stop string too."""
        self._strings = strings
        self._include = include
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be given out now."""
        if not self._strings:
            return text
        text = self._held + text
        found = [(at + len(string), at) for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            end, start = min(found)
            return text[: end if self._include else start]
        keep = max(overlap(text, string) for string in self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held
