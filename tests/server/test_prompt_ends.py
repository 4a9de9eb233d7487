"""An answer begins where its prompt ends, even where that is within a character."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.server.conftest import DEMO
from tests.server.process import ServerProcess

TOKENIZER = Tokenizer.from_file(str(DEMO / "base" / "generator" / "tokenizer.json"))
TEXTS = ["\ufffd", "Tell me about \ufffd\ufffd", "a\ufffd"]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("prompt", [*TEXTS, *map(ids, TEXTS), ids("Tell me about 東")[:-1], ids("é")[:-1]])
def test_a_guided_answer_is_what_its_guide_allows(demo_server: ServerProcess, prompt: str | list[int]) -> None:
    """And has nothing of the prompt in front of it."""
    client = demo_server.client
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "extra_body": {"guided_regex": "[0-9]{4}"}}
    answer = client.completions.create(model="tone", prompt=prompt, **options).choices[0].text
    assert re.fullmatch("[0-9]{4}", answer), answer
    pieces = list(client.completions.create(model="tone", prompt=prompt, stream=True, **options))
    assert "".join(piece.choices[0].text for piece in pieces) == answer
