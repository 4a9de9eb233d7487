"""The pipes to an engine process."""

from __future__ import annotations

import asyncio
import sys

import pytest

from loraplex.server.engine.connection import Connection
from loraplex.server.engine.messages import Cancel, Report, Step

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
        async with asyncio.timeout(30):
            for sequence in (0, 1, 2, 3, 4):
                connection.send(Cancel(sequence))
                if sequence != 2:
                    assert await arrived.get() == sequence
    finally:
        await connection.close()
        await handing
    assert handled == [0, 1, 3, 4]
    assert caplog.text.count("a report of the engine cannot be handled") == 2
