"""Chunks that are put together of parts are what msgspec would make of them whole."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from loraplex.server.api.envelope import TEXT, Envelope
from loraplex.server.api.schema import (
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChoice,
    PromptTokensDetails,
    Usage,
)
from loraplex.server.api.stream import event

USAGE = Usage(3, 4, 7, PromptTokensDetails(2))


@given(st.text(), st.text(), st.sampled_from([UNSET, None, USAGE]), st.sampled_from([None, "stop", "length"]))
def test_an_event_is_the_whole_chunk(
    model: str, text: str, usage: Usage | UnsetType | None, finish: str | None
) -> None:
    def chat(choices: list[ChatChunkChoice], usage: Usage | UnsetType | None = UNSET) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id="x", created=1, model=model, choices=choices, usage=usage, system_fingerprint='"choices":[]'
        )

    def completion(choices: list[CompletionChoice], usage: Usage | UnsetType | None = UNSET) -> Completion:
        return Completion(id="x", created=1, model=model, choices=choices, usage=usage, system_fingerprint="f")

    for deltas in ([], [ChatChunkChoice(0, ChatDelta("assistant", text), finish)]):
        assert Envelope(chat([])).event(deltas, usage) == event(chat(deltas, usage))
    plain = [ChatChunkChoice(3, ChatDelta(content=text))], [CompletionChoice(3, text)]
    if not isinstance(usage, Usage):
        of_chat = Envelope(chat([])).texts(ChatChunkChoice(3, ChatDelta(content=TEXT)), usage)
        of_completion = Envelope(completion([])).texts(CompletionChoice(3, TEXT), usage)
        assert of_chat.event(text) == event(chat(plain[0], usage))
        assert of_completion.event(text) == event(completion(plain[1], usage))
    for texts in ([], [CompletionChoice(1, text, finish)]):
        assert Envelope(completion([])).event(texts, usage) == event(completion(texts, usage))
    assert msgspec.json.decode(event(chat([]))[6:], type=dict)["model"] == model
