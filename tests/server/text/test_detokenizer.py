"""Streamed text is the text, whatever its characters are made of."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loraplex.server.text.detokenizer import Detokenizer


def byte_level() -> Tokenizer:
    """One token a byte: every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_level()


@given(st.text(max_size=40))
@example("東京 🇯🇵 naïve e\u0301 👩‍👩‍👧")
def test_text_comes_out_as_it_went_in(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert Detokenizer(TOKENIZER).decode(ids) == text
    one_by_one = Detokenizer(TOKENIZER)
    assert "".join(one_by_one.decode([token]) for token in ids) == text


@given(st.text(alphabet="aé東🇯", min_size=1, max_size=10), st.data())
def test_a_cut_leaves_whole_characters(text: str, data: st.DataObject) -> None:
    ids = TOKENIZER.encode(text).ids
    cut = data.draw(st.integers(0, len(ids)))
    out = Detokenizer(TOKENIZER).decode(ids[:cut])
    assert text.startswith(out)
    assert "�" not in out


@given(st.lists(st.integers(0, 255), max_size=8), st.text(alphabet="aé東 🇯", min_size=1, max_size=10))
@example(TOKENIZER.encode("東").ids[:2], "x")
@example(TOKENIZER.encode("\ufffd").ids, "東")
@example(TOKENIZER.encode("a\ufffd\ufffd").ids, "a")
def test_what_is_before_does_not_come_out(before: list[int], text: str) -> None:
    """Not even where it ends in half a character, or in the sign for one."""
    ids = TOKENIZER.encode(text).ids
    assert Detokenizer(TOKENIZER, before).decode(ids) == text
    one_by_one = Detokenizer(TOKENIZER, before)
    assert "".join(one_by_one.decode([token]) for token in ids) == text


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_do_not_stop_it(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    out = detokenizer.decode(ids) + detokenizer.decode(TOKENIZER.encode(" and on").ids)
    assert out.endswith(" and on")
