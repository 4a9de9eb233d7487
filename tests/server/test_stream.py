"""Events of a stream as they leave: what is there at once is one piece, and one that fails is its own trouble."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.server.api.stream import Write
from loraplex.server.engine.messages import Output, Sampling, Submit
from loraplex.server.engine.stream import Stream
from loraplex.server.errors import EngineFailed
from loraplex.server.logs import ConsoleLines
from loraplex.server.outlet import GROUP, LARGEST_PIECE, Outlet, Writes
from loraplex.server.record import RequestRecord, enter
from tests.server.stream_client import Client, settled, telling


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
