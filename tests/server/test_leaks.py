"""What is over leaves nothing behind. Objects are counted: how much memory a process has says little of them."""

from __future__ import annotations

import re
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from loraplex.bench.scripted.server import engine_command
from loraplex.server.app import create_app
from loraplex.server.bundle import Bundle
from loraplex.server.engine.messages import Guide
from loraplex.server.serving import Serving, open_serving
from loraplex.server.settings import Settings
from loraplex.server.text.guide import GuideChecker
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, wait_until
from tests.server.test_connections import connect, health
from tests.server.test_watchdog import behaving

ENGINE = "from loraplex.bench.scripted.engine import run; run()"
COUNTING = """
import gc, signal
from loraplex.server.protocol import LimitedRequest

def count(*_):
    gc.collect()
    print("connections:", sum(isinstance(each, LimitedRequest) for each in gc.get_objects()), flush=True)

signal.signal(signal.SIGUSR2, count)
"""
"""A server that logs on SIGUSR2 how many connections it has in memory."""


@pytest.fixture
async def parts(tiny: TinyBundle) -> AsyncIterator[Serving]:
    """The parts of a server, in this process, in front of an engine that says what it was asked."""
    async with open_serving(Settings(), Bundle.open(tiny.folder), engine_command("")) as found:
        yield found


def connections(server: ServerProcess) -> int:
    def counts() -> list[str]:
        return re.findall(r"^connections: (\d+)\n", server.log.read_text(), re.MULTILINE)

    before = len(counts())
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(counts()) > before)
    return int(counts()[-1])


def test_a_connection_that_was_reset_is_forgotten_at_once(tmp_path: Path) -> None:
    with behaving(ENGINE, tmp_path / "log", timeout=0, first=COUNTING) as server:
        with connect(server) as held:
            health(held)
            assert connections(server) == 1
            for _ in range(20):
                with connect(server) as leaving:
                    health(leaving)
                    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wait_until(lambda: connections(server) == 1)
        wait_until(lambda: connections(server) == 0)


async def test_adapters_that_are_gone_leave_no_series_behind(parts: Serving, tiny: TinyBundle) -> None:
    """Also on a server whose metrics nobody reads."""
    transport = httpx.ASGITransport(create_app(parts))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

        async def ask(name: str) -> None:
            for stream in (False, True):
                fields = {"model": name, "prompt": [10], "max_tokens": 2, "stream": stream}
                assert (await client.post("/v1/completions", json=fields)).status_code == 200

        def has_series(name: str) -> bool:
            return f'adapter="{name}"'.encode() in parts.metrics.exposition()

        for name in ("first", "second"):
            await parts.registry.load(name, tiny.folder / "adapters" / "small", source="a test")
            await ask(name)
            assert has_series(name)
        await parts.registry.load("first", tiny.folder / "adapters" / "large", source="a test")
        assert has_series("first")  # another took its place
        await parts.registry.unload("first")
        assert not has_series("first")
        with parts.registry.use("second"):
            await parts.registry.unload("second")
            assert has_series("second")  # a request under it will be counted
        assert not has_series("second")


async def test_of_a_guide_that_passed_only_its_digest_is_kept() -> None:
    checker, guide = GuideChecker(), Guide("regex", "[0-9]{4}")
    before = sys.getrefcount(guide)
    await checker.check(guide, "guided_regex")
    assert sys.getrefcount(guide) == before
