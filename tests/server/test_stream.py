"""Events of a stream as they leave: what is there at once is one piece, and no one waits forever for a reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from starlette.types import Message

from loraplex.server.api import stream
from loraplex.server.api.envelope import Envelope
from loraplex.server.api.schema import (
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChoice,
    PromptTokensDetails,
    Usage,
)
from loraplex.server.api.stream import EventStream, event, events
from loraplex.server.errors import EngineFailed

USAGE = Usage(3, 4, 7, PromptTokensDetails(2))


async def pieces(chunks: Sequence[tuple[bytes, bool]], error: Exception | None = None) -> list[bytes]:
    """What leaves of chunks, each with whether the next is there already."""
    more = False

    async def produced() -> AsyncGenerator[bytes, None]:
        nonlocal more
        for chunk, following in chunks:
            more = following
            yield chunk
        if error:
            raise error

    return [piece async for piece in events(produced(), lambda: more, event, b"end")]


async def test_what_is_there_at_once_leaves_in_one_piece() -> None:
    found = await pieces([(b"a", False), (b"b", True), (b"c", True), (b"d", False), (b"e", False)])
    assert found == [b"a", b"bcd", b"e", b"end"]


async def test_nothing_is_kept_for_a_delta_that_says_nothing() -> None:
    found = await pieces([(b"", False), (b"a", True), (b"", False), (b"b", False)])
    assert found == [b"a", b"b", b"end"]


async def test_what_was_kept_leaves_before_an_error() -> None:
    (found,) = await pieces([(b"a", True), (b"b", True)], EngineFailed("it died"))
    assert found.startswith(b'abdata: {"error":{"message":"it died"')
    assert found.endswith(b"\n\nend")


async def test_a_piece_has_an_end_however_much_there_is() -> None:
    found = await pieces([(b"x" * 1000, True)] * 1000)
    assert b"".join(found) == b"x" * 1_000_000 + b"end"
    assert max(map(len, found)) <= stream.LARGEST_PIECE + 1000


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.booleans())))
def test_nothing_is_lost_however_it_comes(chunks: list[tuple[bytes, bool]]) -> None:
    found = asyncio.run(pieces(chunks))
    assert b"".join(found) == b"".join(chunk for chunk, _ in chunks) + b"end"
    assert b"" not in found


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
    for texts in ([], [CompletionChoice(1, text, finish)]):
        assert Envelope(completion([])).event(texts, usage) == event(completion(texts, usage))
    assert msgspec.json.decode(event(chat([]))[6:], type=dict)["model"] == model


async def test_a_client_that_reads_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "SLOW_READER_SECONDS", 0.1)
    ended: list[str] = []

    async def produced() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(3):
                yield b"data: 1\n\n"
                await asyncio.sleep(0.2)  # an engine may take its time: that is no slow reader
        finally:
            ended.append("events")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 4:  # the head and two events went well
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    response = EventStream(produced(), lambda: ended.append("finish"), 1)
    await response({"type": "http", "method": "POST"}, receive, send)
    assert ended == ["events", "finish"]
    assert "cut off" in caplog.text
    assert [message.get("body") for message in sent[1:]] == [b"data: 1\n\n"] * 3
