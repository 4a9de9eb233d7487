"""Stop strings give the same text however the answer was cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraplex.server.text.stop import StopStrings

texts = st.text(alphabet="abc", max_size=30)


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop = StopStrings(stops)
    out = ""
    for piece in pieces:
        out += stop.feed(piece)
        if stop.stopped:
            return out, True
    return out + stop.flush(), False


@given(st.lists(texts, max_size=8), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4))
def test_pieces_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    text, stopped = run(pieces, stops)
    assert (text, stopped) == run(list(whole), stops)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    if not stopped:
        assert text == whole


def test_the_first_to_be_complete_wins() -> None:
    assert run(["xabcx"], ["abc", "b"]) == ("xa", True)
    assert run(["xab", "cx"], ["abc", "bc"]) == ("x", True)


def test_text_flows_while_no_stop_can_begin() -> None:
    stop = StopStrings(["end"])
    assert stop.feed("the ") == "the "
    assert stop.feed("en") == ""
    assert stop.feed("try") == "entry"
