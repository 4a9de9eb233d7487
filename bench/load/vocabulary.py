"""The tokenizer of the client: makes prompts of a given length, and counts tokens where the server does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from loraplex.bench.errors import OptionsInvalid

ATTEMPTS = 10
"""Decoding tokens and encoding their text again may give another number of them; vLLM tries as often."""

BROKEN = "\ufffd"
"""What bytes become that are no character."""


class Vocabulary:
    """One tokenizer."""

    def __init__(self, source: str) -> None:
        """Load from a folder with tokenizer.json, that file, a bundle, or a hub. Raises OptionsInvalid."""
        self.source = source
        try:
            file = _find(Path(source))
            self._tokenizer = Tokenizer.from_file(str(file)) if file else Tokenizer.from_pretrained(source)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise OptionsInvalid(
                f"no tokenizer for {source}: {reason}. Give --tokenizer a folder with tokenizer.json, or a bundle"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        special = {token for token, each in self._tokenizer.get_added_tokens_decoder().items() if each.special}
        texts = self._tokenizer.decode_batch([[token] for token in range(self.size)], skip_special_tokens=False)
        whole = [token for token, text in enumerate(texts) if token not in special and text and BROKEN not in text]
        self.ordinary = np.array(whole)
        """Ids with text of their own: not special, and no part of a character."""
        self.added_to_prompts: int = self._tokenizer.num_special_tokens_to_add(False)
        """Special tokens that a server puts before or after a plain prompt."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def stable(self, tokens: list[int], random: np.random.Generator) -> list[int]:
        """As many tokens, that are the same again after a trip through text; about as many where none are found."""
        length = len(tokens)
        for _ in range(ATTEMPTS):
            found = self.encode(self.decode(tokens))
            if len(found) == length:
                return found
            missing = max(0, length - len(found))
            tokens = found[:length] + random.choice(self.ordinary, missing).tolist()
        return self.encode(self.decode(tokens))


def _find(path: Path) -> Path | None:
    """The file under a local path; None where there is no such path, which then is a name on a hub."""
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    found = sorted(path.glob("tokenizer.json")) or sorted(path.glob("base/*/tokenizer.json"))
    if not found:
        raise FileNotFoundError(f"{path} has no tokenizer.json")
    return found[0]
