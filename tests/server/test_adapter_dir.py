"""The watched folder while the engine is busy, dies or is asked for what is on its way in."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from loraplex.server import adapter_dir
from loraplex.server.adapter_dir import AdapterDir
from loraplex.server.errors import EngineFailed
from loraplex.server.model import Adapter
from loraplex.server.registry import Registry
from tests.server.calls import PROMPTS, ask, call, upload
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving, wait_until

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


def names(server: ServerProcess) -> set[str]:
    return {model.id for model in server.client.models.list()}


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
    wait_until(lambda: "new" in names(server))
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


def test_one_that_is_broken_says_why_until_it_is_mended(
    server: ServerProcess, tiny: TinyBundle, folder: Path, tmp_path: Path
) -> None:
    draft = shutil.copytree(tiny.folder / "adapters" / "small", tmp_path / "draft")
    good = (draft / "small.onnx_adapter").read_bytes()

    def put(weights: bytes) -> None:
        """In one go: the folder is being watched."""
        (tmp_path / "weights").write_bytes(weights)
        (tmp_path / "weights").replace(folder / "new" / "small.onnx_adapter")

    (draft / "small.onnx_adapter").write_bytes(good[:-100])
    draft.rename(folder / "new")
    for _ in range(2):  # at once, as it is asked for, and of what is known
        with pytest.raises(openai.NotFoundError, match=r"'new' was refused: .*SHA-256") as refusal:
            ask(server, "new", PROMPT)
        assert str(folder) not in refusal.value.message
    card = call(server, "GET", "/v1/adapters/new")[1]
    assert (card["state"], card["source"]) == ("failed", str(folder / "new"))
    assert "SHA-256" in card["reason"]
    assert "SHA-256" in server.get("/health")[1]["refused"]["new"]
    assert "new" not in names(server)

    put(good)
    assert ask(server, "new", PROMPT) == ask(server, "small", PROMPT)
    assert server.get("/health")[1]["refused"] == {}
    put(good[:-100])  # which changes nothing for the one that is loaded
    wait_until(lambda: server.log.read_text().count("adapter refused") == 2)
    assert ask(server, "new", PROMPT) == ask(server, "small", PROMPT)
    assert call(server, "GET", "/v1/adapters/new")[1]["state"] == "ready"


def test_one_that_cannot_be_read_keeps_no_other_out(
    server: ServerProcess, tiny: TinyBundle, folder: Path, tmp_path: Path
) -> None:
    draft = shutil.copytree(tiny.folder / "adapters" / "small", tmp_path / "draft")
    manifest = (draft / "adapter.json").read_bytes()
    (draft / "adapter.json").write_bytes(manifest.replace(b'"format"', b'"\xff"'))
    draft.rename(folder / "a")
    server.wait_for_line("adapter refused")
    shutil.copytree(tiny.folder / "adapters" / "small", folder / "b")
    wait_until(lambda: "b" in names(server))
    assert set(server.get("/health")[1]["refused"]) == {"a"}


def test_one_that_is_broken_gives_its_name_to_another(server: ServerProcess, tiny: TinyBundle, folder: Path) -> None:
    """That a request brings, or to none once its folder is gone."""
    shutil.copytree(tiny.folder / "adapters" / "large", folder / "given" / "large")  # the watch does not look so deep
    broken = ("gone", "uploaded", "loaded")
    for name in broken:
        (folder / name).mkdir()
        (folder / name / "adapter.json").write_text("{}")
    wait_until(lambda: server.get("/health")[1]["refused"].keys() == set(broken))
    assert upload(server, "uploaded", *tiny.adapters["large"].glob("adapter_*"))[0] == 200
    body = {"lora_name": "loaded", "lora_path": "given/large"}
    assert call(server, "POST", "/v1/load_lora_adapter", body)[0] == 200  # not "has already been loaded"
    for name in broken:
        shutil.rmtree(folder / name)
    wait_until(lambda: server.get("/health")[1]["refused"] == {})
    with pytest.raises(openai.NotFoundError, match="'gone' does not exist"):
        ask(server, "gone", PROMPT)
    for name in ("uploaded", "loaded"):
        assert ask(server, name, PROMPT) == ask(server, "large", PROMPT)


def test_the_adapter_dir_is_watched(
    tiny: TinyBundle, sources: Path, tmp_path: Path, expected: Callable[[str, list[int]], str]
) -> None:
    folder, log = tmp_path / "watched", tmp_path / "log"
    shutil.copytree(sources / "small", folder / "there")
    shutil.copytree(sources / "large", folder / "middle")  # a name that the bundle has
    with serving(tiny.folder, log, "--adapter-dir", str(folder)) as server:
        prompt = PROMPTS[6]

        def names() -> set[str]:
            return {model.id for model in server.client.models.list()}

        def answered(name: str) -> str:
            """Nothing while an adapter is on its way out."""
            with suppress(openai.NotFoundError):
                return ask(server, name, prompt)
            return ""

        assert ask(server, "there", prompt) == expected("small", prompt)
        assert ask(server, "tiny:there", prompt) == expected("small", prompt)
        assert ask(server, "middle", prompt) == expected("middle", prompt)
        shutil.copytree(tiny.adapters["partial"], folder / "peft")
        assert ask(server, "peft", prompt) == expected("partial", prompt)  # at once: it is asked for
        (folder / "broken").mkdir()
        (folder / "broken" / "adapter.json").write_text("{}")
        shutil.copytree(sources / "large", folder / "later")
        wait_until(lambda: "later" in names())
        assert ask(server, "later", prompt) == expected("large", prompt)
        shutil.rmtree(folder / "there")
        shutil.copytree(sources / "middle", folder / "there")
        wait_until(lambda: answered("there") == expected("middle", prompt))
        shutil.rmtree(folder / "later")
        wait_until(lambda: "later" not in names())
        assert names() == {"tiny", *tiny.adapters, "there", "peft"}
        time.sleep(2.5)
        assert log.read_text().count("broken") == 1
    assert "Traceback" not in log.read_text()


def test_what_was_loaded_by_a_request_is_not_the_folders(tiny: TinyBundle, sources: Path, tmp_path: Path) -> None:
    """Even where the folder had the name before."""
    folder = tmp_path / "watched"
    for name in ("mine", "other"):
        shutil.copytree(sources / "small", folder / name)
    with serving(tiny.folder, tmp_path / "log", "--dev", "--adapter-dir", str(folder)) as server:
        assert call(server, "DELETE", "/v1/adapters/mine")[0] == 200
        assert upload(server, "mine", *tiny.adapters["large"].glob("adapter_*"))[0] == 201
        for name in ("mine", "other"):
            shutil.rmtree(folder / name)
        wait_until(lambda: "other" not in {model.id for model in server.client.models.list()})
        assert ask(server, "mine", PROMPTS[0]) == ask(server, "large", PROMPTS[0])


class Deadly(Registry):
    """One whose engine dies of every adapter."""

    def __init__(self) -> None:
        self.tries = 0

    def is_loaded(self, name: str) -> bool:  # noqa: ARG002
        return False

    async def load(self, name: str, folder: Path, *, source: str, keep: bool = True) -> Adapter:  # noqa: ARG002
        self.tries += 1
        raise EngineFailed("the engine process died while it worked on this request")

    def refuse(self, name: str, folder: Path, *, source: str, reason: str) -> Adapter:
        return Adapter(name, folder, source, "failed", reason)


class Bewildered(Deadly):
    """One that fails on an adapter in a way that nobody foresaw."""

    async def load(self, name: str, folder: Path, *, source: str, keep: bool = True) -> Adapter:  # noqa: ARG002
        if name == "a":
            raise RuntimeError("surprise")
        self.tries += 1
        return Adapter(name, folder, source, "ready")


async def test_what_nobody_foresaw_of_one_adapter_keeps_no_other_out(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "adapter.json").write_text("{}")
    registry = Bewildered()
    watched = AdapterDir(folder, registry)
    await watched.load()
    assert registry.tries == 1
    await watched.close()


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
