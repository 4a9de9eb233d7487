"""Clients that read too slowly or not at all, and those that are leaving."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from starlette.types import Message

from loraplex.server.api import stream
from loraplex.server.api.stream import EventStream, Write, event
from loraplex.server.outlet import Outlet, Writes
from tests.server.stream_client import Client, settled, telling


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
    response = EventStream(tell, event, b"", Writes(then=lambda: None), lambda: ended.append("finish"))
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


async def test_a_client_that_left_before_the_first_word_ends_the_answer() -> None:
    class Gone(Client):
        async def receive(self) -> Message:
            return {"type": "http.disconnect"}

    async def tell(write: Write) -> None:  # noqa: ARG001
        await asyncio.Event().wait()

    async with asyncio.timeout(60):
        assert await Gone().gets(tell) == []


async def test_a_connection_is_in_use_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = asyncio.Event()

    class Waiting(Client):
        def write(self, chunk: bytes) -> None:
            super().write(chunk)
            if len(self.got) == 3:
                enough.set()

    async def tell(write: Write) -> None:
        write(b"a")
        await enough.wait()

    monkeypatch.setattr(stream, "PING_SECONDS", 0.01)
    async with asyncio.timeout(60):
        first, *pings, last = await Waiting().gets(tell)
    assert (first, last) == (b"a", b"end")
    for ping in pings:
        assert re.fullmatch(rb": ping - [\d-]+ [\d:.]+\+00:00\r\n\r\n", ping)
