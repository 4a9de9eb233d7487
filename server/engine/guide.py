"""Guided decoding: which tokens a JSON schema, a regular expression or a grammar lets come next, with llguidance."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from loraplex.server.engine.grammar import grammar
from loraplex.server.engine.messages import Guide

GUIDE_SECONDS = 0.02
"""How long a lane's step without anything else to do waits for a guide; commands are read between steps."""


class GuideInvalid(Exception):
    """A guide that cannot be followed; str() says why, in a line: llguidance adds a dump of its state."""

    def __str__(self) -> str:
        return super().__str__().partition("\n")[0][:300]


class Guides:
    """Compiles guides for one tokenizer, one after another and beside whatever else its owner does."""

    def __init__(self, tokenizer: Path, vocab_size: int, end_tokens: frozenset[int]) -> None:
        """`tokenizer` is a tokenizer.json. It is read when the first guide comes."""
        self._file = tokenizer
        self._vocab_size = vocab_size
        self._end_tokens = sorted(end_tokens)
        self._tokenizer: Any = None
        # llguidance lets go of the GIL while it compiles, which takes seconds for the largest guides.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guides")

    def begin(self, guide: Guide) -> Future[GuideState]:
        """Start to compile; the result raises GuideInvalid."""
        return self._thread.submit(self._compile, guide)

    def _compile(self, guide: Guide) -> GuideState:
        try:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._file.read_text("utf-8"), n_vocab=self._vocab_size, eos_token=self._end_tokens
                )
            matcher = LLMatcher(self._tokenizer, grammar(guide), log_level=0)
        except (OSError, ValueError) as error:
            raise GuideInvalid(f"the {guide.kind} cannot be compiled: {error}") from None
        if matcher.is_error():
            raise GuideInvalid(f"the {guide.kind} cannot be compiled: {matcher.get_error()}")
        return GuideState(matcher, self._vocab_size)


class GuideState:
    """Where one answer stands in its guide."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """The tokens that may come next, [vocab_size]; end tokens where the answer may end. Raises GuideInvalid."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on by one token. Raises GuideInvalid where it is none of the allowed ones."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GuideInvalid(f"the guide cannot be followed: {self._matcher.get_error()}")
