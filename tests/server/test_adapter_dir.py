"""The watched folder while the engine is busy, dies or is asked for what is on its way in."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loraplex.server import adapter_dir
from loraplex.server.adapter_dir import AdapterDir
from loraplex.server.errors import EngineFailed
from loraplex.server.model import Adapter
from loraplex.server.registry import Registry
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving, wait_until
from tests.server.test_adapters import ask, call

PROMPT = [12, 52, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tiny: TinyBundle, folder: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tiny.folder, tmp_path / "log", "--dev", "--adapter-dir", str(folder)) as found:
        yield found
    assert "Traceback" not in (tmp_path / "log").read_text()


def begin(server: ServerProcess, tiny: TinyBundle, folder: Path) -> None:
    """Let an adapter appear, which the engine does not get to."""
    server.engine().suspend()
    shutil.copytree(tiny.folder / "adapters" / "small", folder / "new")
    wait_until(lambda: any(card["state"] == "loading" for card in call(server, "GET", "/v1/adapters")[1]["data"]))


def test_what_is_on_its_way_in_is_waited_for(server: ServerProcess, tiny: TinyBundle, folder: Path) -> None:
    begin(server, tiny, folder)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, server, "new", PROMPT)
        time.sleep(0.5)
        waits = not answer.done()
        server.engine().resume()
        assert answer.result(30) == ask(server, "small", PROMPT)
    assert waits
    assert "there is an adapter of this name" not in server.log.read_text()


def test_an_engine_that_dies_meanwhile_gets_the_adapter_again(
    server: ServerProcess, tiny: TinyBundle, folder: Path
) -> None:
    begin(server, tiny, folder)
    server.engine().kill()
    wait_until(lambda: "new" in {model.id for model in server.client.models.list()})
    assert ask(server, "new", PROMPT) == ask(server, "small", PROMPT)


def test_options_wait_for_an_adapter_that_a_restart_does_not_find(
    tiny: TinyBundle, folder: Path, tmp_path: Path
) -> None:
    """But its aliases are free until it is back."""
    flags = ("--dev", "--adapter-dir", str(folder), "--state-dir", str(tmp_path / "state"))

    def patch(server: ServerProcess, name: str, **options: object) -> tuple[int, dict[str, object]]:
        status, body = call(server, "PATCH", f"/v1/adapters/{name}", options)
        return status, body["options"] if status == 200 else body["error"]

    def model(name: str) -> Path:
        return tiny.folder / "adapters" / name

    shutil.copytree(model("small"), folder / "comes")
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        options = {"aliases": ["first", "second", "third"], "description": "and goes", "sampling": {}}
        assert patch(server, "comes", **options) == (200, options)
    shutil.rmtree(folder / "comes")
    shutil.copytree(model("middle"), folder / "first")
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        assert patch(server, "comes", aliases=[])[0] == 404
        assert ask(server, "first", PROMPT) == ask(server, "middle", PROMPT)
        assert patch(server, "large", aliases=["second"])[0] == 200
        shutil.copytree(model("small"), folder / "comes")
        assert ask(server, "comes", PROMPT) == ask(server, "small", PROMPT)
        for name, same in (("first", "middle"), ("second", "large"), ("third", "small")):
            assert ask(server, name, PROMPT) == ask(server, same, PROMPT)
        assert patch(server, "comes") == (200, options | {"aliases": ["third"]})
        assert "'comes' is no longer called first, second" in server.log.read_text()
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        for name, same in (("first", "middle"), ("second", "large"), ("third", "small")):
            assert ask(server, name, PROMPT) == ask(server, same, PROMPT)


class Deadly(Registry):
    """One whose engine dies of every adapter."""

    def __init__(self) -> None:
        self.tries = 0

    def is_loaded(self, name: str) -> bool:  # noqa: ARG002
        return False

    async def load(self, name: str, folder: Path, *, source: str, keep: bool = True) -> Adapter:  # noqa: ARG002
        self.tries += 1
        raise EngineFailed("the engine process died while it worked on this request")


async def test_an_adapter_that_the_engine_dies_of_is_not_loaded_again_and_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_dir, "PERIOD", 0.01)
    (folder / "deadly").mkdir()
    (folder / "deadly" / "adapter.json").write_text("{}")
    registry = Deadly()
    watching = asyncio.create_task(AdapterDir(folder, registry).watch())
    try:
        for expected in (2, 4):
            for _ in range(5000):
                await asyncio.sleep(0.01)
                if registry.tries >= expected:
                    break
            await asyncio.sleep(0.3)
            assert registry.tries == expected
            (folder / "deadly" / "adapter.json").write_text("{ }")  # another one
    finally:
        watching.cancel()
