"""The pipes to an engine process."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from loraplex.server.engine import connection as module
from loraplex.server.engine.connection import Connection
from loraplex.server.engine.messages import Cancel, Output, Report, Step, pack

ECHO = """
import sys
from loraplex.server.engine.messages import HEADER, Output, Step, pack, unpack_command

while header := sys.stdin.buffer.read(HEADER.size):
    command = unpack_command(sys.stdin.buffer.read(HEADER.unpack(header)[0]))
    report = pack(Step([Output(command.sequence, [])]))
    sys.stdout.buffer.write(HEADER.pack(3) + b"abc" if command.sequence == 2 else report)
    sys.stdout.buffer.flush()
"""
"""Answers Cancel with the output of its sequence, but the one of 2 with what is no report."""


async def test_a_report_that_cannot_be_handled_is_the_only_one_lost(caplog: pytest.LogCaptureFixture) -> None:
    connection = await Connection.open([sys.executable, "-c", ECHO])
    handled: list[int] = []
    arrived: asyncio.Queue[int] = asyncio.Queue()

    def handle(report: Report) -> None:
        assert isinstance(report, Step)
        handled.append(report.outputs[0].sequence)
        arrived.put_nowait(handled[-1])
        if handled[-1] == 1:
            raise ValueError("no more of this")

    handing = asyncio.create_task(connection.hand_to(handle))
    try:
        async with asyncio.timeout(60):
            for sequence in (0, 1, 2, 3, 4):
                connection.send(Cancel(sequence))
                if sequence != 2:
                    assert await arrived.get() == sequence
    finally:
        await connection.close()
        await handing
    assert handled == [0, 1, 3, 4]
    assert caplog.text.count("a report of the engine cannot be handled") == 2


async def test_what_is_killed_counts_as_gone_and_says_nothing_more() -> None:
    connection = await Connection.open([sys.executable, "-c", ECHO])
    handled: asyncio.Queue[Report] = asyncio.Queue()
    handing = asyncio.create_task(connection.hand_to(handled.put_nowait))
    connection.send(Cancel(0))
    async with asyncio.timeout(60):
        await handled.get()
        connection.kill()
        await handing
        # As if it had been on its way.
        connection.pipe_data_received(1, pack(Step([Output(7, [])])))
        assert await connection.close() == -signal.SIGKILL
    assert handled.empty()


async def test_a_process_that_cannot_be_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the middle of a driver's call: here the signal does not reach it."""
    connection = await Connection.open([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(connection._transport, "kill", lambda: None)
        handing = asyncio.create_task(connection.hand_to(lambda _: None))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            connection.kill()
            await handing
            assert await connection.close() is None
    assert "cannot be killed" in caplog.text
    async with asyncio.timeout(60):
        await connection.wait()  # closing the transport ended it


async def test_steps_that_come_together_are_one() -> None:
    connection = await Connection.open([sys.executable, "-c", ECHO])
    handled: list[Report] = []
    handing = asyncio.create_task(connection.hand_to(handled.append))
    await asyncio.sleep(0)
    first, second, third = (pack(Step([Output(1, [token]), Output(2, [token])], token / 10)) for token in (1, 2, 3))
    connection.pipe_data_received(1, first + second + third[:5])
    assert handled == [Step([Output(1, [1]), Output(2, [1]), Output(1, [2]), Output(2, [2])], 0.2)]
    connection.pipe_data_received(1, third[5:])
    assert handled[1:] == [Step([Output(1, [3]), Output(2, [3])], 0.3)]
    await connection.close()
    await handing
