"""Token ids to text, as they arrive."""

from __future__ import annotations

from collections.abc import Container, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Text of one sequence; a character is given out once all of its tokens are there.

    `before` are ids in front of the first one, which some decoders need to get the space between words right. `hidden`
    are the tokens that have no text; None is every special one.
    """

    __slots__ = ("_hidden", "_skip_special", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), hidden: Container[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._hidden = () if hidden is None else hidden
        self._skip_special = hidden is None
        before = list(before)
        # From ids that end in half a character a stream makes no prefix, and gives their text out as the answer's.
        while before and tokenizer.decode(before, skip_special_tokens=self._skip_special).endswith("\ufffd"):
            before.pop()
        self._stream = DecodeStream(ids=before, skip_special_tokens=self._skip_special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text these tokens complete; bytes of an unfinished character are kept for the next call."""
        if len(tokens) == 1:  # which is what a step gives nearly every sequence
            return self.add(tokens[0])
        return "".join(map(self.add, tokens))

    def add(self, token: int) -> str:
        """The text that one more token completes."""
        if token in self._hidden:
            return ""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:
            # The stream gives up when a token changes text that it gave out already (invalid byte sequences do that).
            # Nothing is lost: what it held back was not valid text.
            self._stream = DecodeStream(skip_special_tokens=self._skip_special)
            return self._stream.step(self._tokenizer, token) or ""
