"""Events of a stream as they leave: what is there at once is one piece, and no one waits forever for a reader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from io import StringIO
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from starlette.types import Message

from loraplex.server.api import stream
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
from loraplex.server.api.stream import EventStream, Write, event
from loraplex.server.engine.messages import Output, Sampling, Submit
from loraplex.server.engine.stream import Stream
from loraplex.server.errors import EngineFailed
from loraplex.server.logs import ConsoleLines
from loraplex.server.outlet import GROUP, LARGEST_PIECE, Outlet, Writes
from loraplex.server.record import RequestRecord, enter

USAGE = Usage(3, 4, 7, PromptTokensDetails(2))


Tell = Callable[[Write], Coroutine[Any, Any, None]]
Told = Sequence[tuple[bytes, bool]]
"""Events, each with whether more follow at once."""


class Client:
    """A client as the server sees it, with both ways to it."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.keeps_up = asyncio.Event()
        self.keeps_up.set()
        self.by_asgi = 0
        self.aborted = False

    @property
    def write_paused(self) -> bool:
        return not self.keeps_up.is_set()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def write(self, chunk: bytes) -> None:
        size, _, rest = chunk.partition(b"\r\n")
        assert rest.endswith(b"\r\n")
        assert int(size, 16) == len(rest) - 2 > 0
        self.got.append(rest[:-2])

    async def send(self, message: Message) -> None:
        await self.keeps_up.wait()
        if body := message.get("body"):
            self.by_asgi += 1
            self.got.append(body)

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def gets(self, tell: Tell, writes: Writes | None = None, *, directly: bool = True) -> list[bytes]:
        """What comes of a whole answer."""
        found: Any = self  # transport and flow control in one
        extensions = Outlet(found, found).extension() if directly else {}
        answer = EventStream(tell, event, b"end", writes or Writes(then=lambda: None), lambda: None, 1)
        await answer({"type": "http", "method": "POST", "extensions": extensions}, self.receive, self.send)
        return self.got


async def settled() -> None:
    """Wait until all that waits for nothing but its turn is done, as sending the head or what was left."""
    for _ in range(100):
        await asyncio.sleep(0)


def telling(told: Told, error: Exception | None = None) -> Tell:
    async def tell(write: Write) -> None:
        await settled()
        for events, more in told:
            write(events, more)
        if error:
            raise error

    return tell


async def test_what_is_there_at_once_leaves_in_one_piece() -> None:
    client = Client()
    found = await client.gets(telling([(b"a", False), (b"b", True), (b"c", True), (b"d", False), (b"e", False)]))
    assert found == [b"a", b"bcd", b"e", b"end"]
    assert client.by_asgi == 0


async def test_nothing_is_kept_for_a_delta_that_says_nothing() -> None:
    found = await Client().gets(telling([(b"", False), (b"a", True), (b"", False), (b"b", False)]))
    assert found == [b"a", b"b", b"end"]


async def test_what_was_kept_leaves_before_an_error() -> None:
    (found, end) = await Client().gets(telling([(b"a", True), (b"b", True)], EngineFailed("it died")))
    assert found.startswith(b'abdata: {"error":{"message":"it died"')
    assert end == b"end"


async def test_a_failure_of_ours_is_told_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    (found, end) = await Client().gets(telling([], RuntimeError("secret")))
    assert b"secret" not in found
    assert b"its log says why" in found
    assert end == b"end"
    assert "secret" in caplog.text


@pytest.mark.parametrize("directly", [True, False])
async def test_a_piece_has_an_end_however_much_there_is(directly: bool) -> None:
    found = await Client().gets(telling([(b"x" * 1000, True)] * 1000), directly=directly)
    assert b"".join(found) == b"x" * 1_000_000 + b"end"
    assert max(map(len, found)) <= LARGEST_PIECE + 1000


async def test_what_a_slow_client_does_not_take_comes_later_and_in_order() -> None:
    client = Client()

    async def tell(write: Write) -> None:
        await settled()
        for number in range(30):
            write(b"%d " % number)
            if number == 9:
                client.keeps_up.clear()
            if number == 19:
                await settled()
                client.keeps_up.set()
                await settled()

    found = await client.gets(tell)
    assert b"".join(found) == b"".join(b"%d " % number for number in range(30)) + b"end"
    assert client.by_asgi == 1
    assert len(found) == 10 + 1 + 10 + 1


async def test_the_writes_of_a_step_leave_before_it_is_counted() -> None:
    client, counted = Client(), list[int]()
    writes = Writes(then=lambda: counted.append(len(client.got)))

    async def tell(write: Write) -> None:
        await settled()
        with writes:
            for _ in range(GROUP + 3):
                write(b"a")
            assert client.got == [b"a"] * GROUP
        assert client.got == [b"a"] * (GROUP + 3)
        write(b"b")
        assert client.got[-1] == b"b"

    found = await client.gets(tell, writes)
    assert found == [b"a"] * (GROUP + 3) + [b"b", b"end"]
    assert counted == [GROUP + 3]


class Closed(Client):
    """One whose connection takes nothing, and does not say so before."""

    def write(self, chunk: bytes) -> None:  # noqa: ARG002
        raise RuntimeError("the handler is closed")


async def test_a_connection_that_cannot_be_written_to_is_its_own_trouble(caplog: pytest.LogCaptureFixture) -> None:
    good = Client()
    writes = Writes(then=lambda: None)
    clients: list[Any] = [Closed(), good]
    with writes:
        for client in clients:
            writes.add(Outlet(client, client), b"a")
    assert good.got == [b"a"]
    assert "the handler is closed" in caplog.text


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """What the server's log says."""
    found = StringIO()
    handler = logging.StreamHandler(found)
    handler.setFormatter(ConsoleLines())
    logger = logging.getLogger("loraplex")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


async def test_a_write_that_fails_in_a_step_is_logged_with_its_request(lines: StringIO) -> None:
    writes = Writes(then=lambda: None)
    standing: asyncio.Queue[Write] = asyncio.Queue()
    stepped = asyncio.Event()

    async def tell(write: Write) -> None:
        await settled()
        await standing.put(write)
        await stepped.wait()

    async def request() -> None:
        enter(RequestRecord("its-own"))
        await Closed().gets(tell, writes)

    answer = asyncio.create_task(request())
    write = await standing.get()
    with writes:  # outside of any request, as where the engine is read
        write(b"a")
    assert "an event cannot be written request=its-own\n" in lines.getvalue()
    stepped.set()
    await answer


async def test_an_end_that_cannot_be_handled_is_its_own_trouble(lines: StringIO) -> None:
    def release() -> None:
        raise RuntimeError("no such ticket")

    async def ask(sequence: int, on_end: Callable[[], None]) -> Stream:
        enter(RequestRecord(f"request-{sequence}"))
        return Stream(Submit(sequence, None, [1], 1, Sampling()), lambda *_: True, on_end)

    ended: list[int] = []
    ends = [release, lambda: ended.append(1)]
    streams = [await asyncio.create_task(ask(number, on_end)) for number, on_end in enumerate(ends)]
    for number, each in enumerate(streams):
        each.push(Output(number, [5], "length"))
    for each in streams:
        await each.over()
    assert ended == [1]
    assert "the end of a sequence cannot be handled request=request-0\n" in lines.getvalue()
    assert "no such ticket" in lines.getvalue()
    assert "request-1" not in lines.getvalue()


@given(st.lists(st.tuples(st.binary(max_size=5), st.booleans(), st.sampled_from(["", "pause", "resume", "wait"]))))
def test_nothing_is_lost_however_it_comes(told: list[tuple[bytes, bool, str]]) -> None:
    async def found() -> list[bytes]:
        client = Client()

        async def tell(write: Write) -> None:
            for events, more, happens in told:
                write(events, more)
                if happens == "pause":
                    client.keeps_up.clear()
                elif happens == "resume":
                    client.keeps_up.set()
                elif happens == "wait":
                    await asyncio.sleep(0)
            client.keeps_up.set()

        return await client.gets(tell)

    pieces = asyncio.run(found())
    assert b"".join(pieces) == b"".join(events for events, _, _ in told) + b"end"
    assert b"" not in pieces


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


async def test_a_client_that_reads_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "SLOW_READER_SECONDS", 0.1)
    ended: list[str] = []
    client = Client()

    async def tell(write: Write) -> None:
        try:
            for number in range(3):
                await asyncio.sleep(0.2)  # an engine may take its time: that is no slow reader
                if number == 2:
                    client.keeps_up.clear()
                write(b"data: 1\n\n")
            await asyncio.Event().wait()
        finally:
            ended.append("telling")

    found: Any = client
    scope = {"type": "http", "method": "POST", "extensions": Outlet(found, found).extension()}
    response = EventStream(tell, event, b"", Writes(then=lambda: None), lambda: ended.append("finish"), 1)
    await response(scope, client.receive, client.send)
    assert ended == ["telling", "finish"]
    assert "cut off" in caplog.text
    assert client.got == [b"data: 1\n\n"] * 2
    assert client.aborted  # what was written waits in the transport, and would hold the connection open


async def test_a_client_that_stops_reading_before_the_end_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Client):
        def write(self, chunk: bytes) -> None:
            super().write(chunk)
            self.keeps_up.clear()

    monkeypatch.setattr(stream, "SLOW_READER_SECONDS", 0.1)
    client = Full()
    async with asyncio.timeout(60):
        await client.gets(telling([]))
    assert "cut off" in caplog.text
    assert client.aborted


async def test_nothing_is_written_past_a_connection_that_closes(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()

    async def tell(write: Write) -> None:
        await settled()
        client.abort()
        write(b"a")

    await client.gets(tell)
    assert client.by_asgi == 1  # where its protocol says what becomes of it
    assert not caplog.records
