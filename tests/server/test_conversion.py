"""PEFT adapters that are converted at the same time."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from loraplex.server.machine import usable_cores
from loraplex.server.room import Room
from tests.server.calls import ask, call
from tests.server.conftest import TinyBundle
from tests.server.process import PATIENCE, ServerProcess, children, serving, wait_until

PLACES = max(1, usable_cores() // 2)


def converters(server: ServerProcess) -> set[psutil.Process]:
    return set(children(server.process.pid, "convert"))


def endless(tiny: TinyBundle, folder: Path) -> Path:
    """Write a PEFT adapter whose conversion does not end by itself, for a pattern in its config. Returns folder."""
    peft = Path(shutil.copytree(tiny.adapters["small"], folder))
    config = json.loads((peft / "adapter_config.json").read_text())
    projections = json.loads((tiny.folder / "adapters" / "small" / "adapter.json").read_text())["ranks"]
    config["rank_pattern"] = {"(a+)+$": 3, "(.*)*x": 4, min(projections): 5}
    (peft / "adapter_config.json").write_text(json.dumps(config))
    return peft


def test_adapters_that_come_at_once_are_converted_in_turn(
    tiny: TinyBundle, tiny_server: ServerProcess, tmp_path: Path
) -> None:
    """Those that take all of the places do not end before they are ended."""
    first, names = [f"endless-{number}" for number in range(PLACES)], [f"new-{number}" for number in range(4)]
    sources = tmp_path / "sources"
    shutil.copytree(tiny.adapters["large"], sources / "given" / "peft")
    endless(tiny, sources / "given" / "endless")
    flags = ("--dev", "--adapter-dir", str(sources))
    with (
        serving(tiny.folder, tmp_path / "log", *flags) as server,
        ThreadPoolExecutor(PLACES + len(names)) as pool,
    ):

        def put(name: str, path: str) -> int:
            return call(server, "PUT", f"/v1/adapters/{name}", {"path": f"given/{path}"})[0]

        ended = [pool.submit(put, name, "endless") for name in first]
        wait_until(lambda: len(converters(server)) == PLACES)
        held = converters(server)
        for each in held:
            each.suspend()
        answers = [pool.submit(put, name, "peft") for name in names]
        cards = len(tiny.adapters) + PLACES + len(names)
        wait_until(lambda: len(call(server, "GET", "/v1/adapters")[1]["data"]) == cards)
        for _ in range(20):
            time.sleep(0.05)
            assert converters(server) == held
        for each in held:
            each.kill()
        assert {answer.result(PATIENCE) for answer in ended} == {422}
        while not all(answer.done() for answer in answers):
            assert len(converters(server)) <= PLACES
            time.sleep(0.01)
        assert {answer.result() for answer in answers} == {201}
        expected = ask(tiny_server, "large", [12, 52, 7])
        assert {ask(server, name, [12, 52, 7]) for name in names} == {expected}


async def test_room_is_given_in_turn() -> None:
    room, log = Room(2, lambda: 100), []
    may_end = {name: asyncio.Event() for name in "abcde"}

    async def work(name: str, memory: int) -> None:
        async with room.take(memory):
            log.append(name)
            await may_end[name].wait()

    async def begun(expected: str) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert "".join(log) == expected

    sizes = {"a": 60, "b": 60, "c": 10, "d": 500, "e": 1}
    tasks = {}
    for name, memory in sizes.items():
        tasks[name] = asyncio.create_task(work(name, memory))
        await begun("a")
    may_end["a"].set()
    await begun("abc")
    may_end["b"].set()
    await begun("abc")  # 500 bytes are to be had alone only, and who came later waits behind
    may_end["c"].set()
    await begun("abcd")
    may_end["d"].set()
    await begun("abcde")
    may_end["e"].set()
    await asyncio.gather(*tasks.values())


async def test_who_gives_up_leaves_its_turn_to_others() -> None:
    room = Room(1, lambda: 100)

    async def work() -> None:
        async with room.take(1):
            pass

    async with room.take(1):
        first, second, third = (asyncio.create_task(work()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert not third.done()
    async with asyncio.timeout(PATIENCE):
        await third
    assert first.cancelled()
    assert second.cancelled()
