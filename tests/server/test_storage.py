"""A full disk, files that vanish, processes that are killed while an adapter is loaded: nothing is left half-done."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.server.calls import ask, call, upload
from tests.server.conftest import TinyBundle
from tests.server.process import PATIENCE, ServerProcess, command, serving, wait_until

PROMPT = [12, 52, 7]
SIZE = 2**20
"""Of the small disk."""


def names(server: ServerProcess) -> set[str]:
    return {model.id for model in server.client.models.list()}


def kept(state: Path) -> set[str]:
    """The adapters of the index, each of which has its folder, and nothing else lies there."""
    index = json.loads((state / "adapters.json").read_bytes())
    folders = {state / entry["folder"] for entry in index["adapters"].values()}
    assert all((folder / "adapter.json").is_file() for folder in folders)
    assert {each.name for each in state.iterdir()} == {"adapters.json", *(folder.parent.name for folder in folders)}
    return set(index["adapters"])


def is_empty(state: Path) -> bool:
    """Of copies: the one that was unloaded last is deleted once the engine has let it go."""
    return [each.name for each in state.iterdir()] == ["adapters.json"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no disk can be made here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def sources(tiny: TinyBundle, tmp_path: Path) -> Path:
    """A folder for --adapter-dir, of which `given` holds adapters; the watch does not look so deep."""
    sources = tmp_path / "sources"
    shutil.copytree(tiny.folder / "adapters", sources / "given")
    shutil.copytree(tiny.adapters["small"], sources / "given" / "peft")
    return sources


@pytest.mark.timeout(400)
def test_a_full_disk_is_said_and_leaves_nothing(
    tiny: TinyBundle, tiny_server: ServerProcess, sources: Path, disk: Path, tmp_path: Path
) -> None:
    state = disk / "state"
    expected = {name: ask(tiny_server, name, PROMPT) for name in ("small", "large")}
    flags = ("--dev", "--adapter-dir", str(sources), "--state-dir", str(state))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
        filler = disk / "filler"
        # From nothing to room for the files as they come, then for a copy, then for what is made of them.
        for room in range(0, 10**6, 20_000):
            filler.write_bytes(b"")
            filler.write_bytes(bytes(max(0, psutil.disk_usage(str(disk)).free - room)))
            status, body = upload(server, "more", *tiny.adapters["large"].glob("adapter_*"))
            if status == 201:
                break
            assert (status, body["error"]["code"]) == (507, "storage_failed"), (room, body)
            assert "No space left" in body["error"]["message"]
            assert str(tmp_path) not in body["error"]["message"]
            assert kept(state) == {"new"}
        assert room > 100_000
        assert ask(server, "more", PROMPT) == expected["large"]
        assert call(server, "DELETE", "/v1/adapters/more")[0] == 200
        filler.write_bytes(b"")
        filler.write_bytes(bytes(psutil.disk_usage(str(disk)).free - 8192))
        for name in ("more", "new"):
            status, body = call(server, "PUT", f"/v1/adapters/{name}", {"path": "given/large"})
            assert (status, body["error"]["code"]) == (507, "storage_failed")
        assert ask(server, "new", PROMPT) == expected["small"]
        filler.write_bytes(b"")
        filler.write_bytes(bytes(psutil.disk_usage(str(disk)).free))
        for answer in (
            call(server, "PATCH", "/v1/adapters/new", {"aliases": ["neu"]}),
            call(server, "DELETE", "/v1/adapters/new"),
        ):
            assert (answer[0], answer[1]["error"]["code"]) == (507, "storage_failed")
            assert str(tmp_path) not in answer[1]["error"]["message"]
        assert names(server) == {"tiny", "new", *tiny.adapters}
        filler.unlink()
        assert call(server, "PUT", "/v1/adapters/new", {"path": "given/large"})[0] == 200
        assert ask(server, "new", PROMPT) == expected["large"]
        assert kept(state) == {"new"}
    assert "Traceback" not in (tmp_path / "log").read_text()
    with serving(tiny.folder, tmp_path / "again.log", "--state-dir", str(state)) as server:
        assert ask(server, "new", PROMPT) == expected["large"]


@pytest.mark.slow
def test_the_adapter_dir_is_taken_over_once_there_is_room(
    tiny: TinyBundle, sources: Path, disk: Path, tmp_path: Path
) -> None:
    filler = disk / "filler"

    def fill() -> None:
        filler.write_bytes(b"")
        filler.write_bytes(bytes(psutil.disk_usage(str(disk)).free))

    def said(what: str) -> bool:
        return what in (tmp_path / "log").read_text()

    flags = ("--dev", "--adapter-dir", str(sources), "--state-dir", str(disk / "state"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        fill()
        shutil.copytree(sources / "given" / "small", sources / "new")
        wait_until(lambda: said("adapter 'new' could not be stored"))
        with pytest.raises(openai.NotFoundError, match=r"refused: .*No space left on device; it is tried again every"):
            ask(server, "new", PROMPT)
        card = call(server, "GET", "/v1/adapters/new")[1]
        assert (card["state"], "No space left" in card["reason"]) == ("failed", True)
        assert "No space left" in server.get("/health")[1]["refused"]["new"]
        assert "new" not in names(server)
        filler.unlink()
        wait_until(lambda: "new" in names(server))
        assert server.get("/health")[1]["refused"] == {}
        assert ask(server, "new", PROMPT) == ask(server, "small", PROMPT)
        assert call(server, "PATCH", "/v1/adapters/new", {"description": "here"})[0] == 200
        fill()
        shutil.rmtree(sources / "new")
        wait_until(lambda: said("adapter new cannot be unloaded"))
        assert "new" in names(server)
        filler.unlink()
        wait_until(lambda: "new" not in names(server))
        wait_until(lambda: is_empty(disk / "state"))
        assert kept(disk / "state") == set()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_sources_that_come_and_go_are_loaded_or_refused(
    tiny: TinyBundle, tiny_server: ServerProcess, sources: Path, tmp_path: Path
) -> None:
    state, expected = tmp_path / "state", ask(tiny_server, "small", PROMPT)
    flags = ("--dev", "--adapter-dir", str(sources), "--state-dir", str(state))
    stop = threading.Event()

    def churn(name: str) -> None:
        while not stop.is_set():
            shutil.rmtree(sources / "churn" / name, ignore_errors=True)
            shutil.copytree(sources / "given" / name, sources / "churn" / name)

    with serving(tiny.folder, tmp_path / "log", *flags) as server, ThreadPoolExecutor() as pool:
        workers = [pool.submit(churn, name) for name in ("small", "peft")]
        try:
            found = [
                call(server, "PUT", "/v1/adapters/new", {"path": f"churn/{name}"})
                for _ in range(20)
                for name in ("small", "peft", "small")
            ]
        finally:
            stop.set()
        for worker in workers:
            worker.result(PATIENCE)
        assert {status for status, _ in found} <= {200, 201, 404, 422}, found
        assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] in (200, 201)
        assert ask(server, "new", PROMPT) == expected
        assert kept(state) == {"new"}
    assert "Traceback" not in (tmp_path / "log").read_text()


class Loading:
    """A server whose engine stands still while it is given an adapter."""

    def __init__(self, server: ServerProcess, pool: ThreadPoolExecutor) -> None:
        self.engine = server.engine()
        self.engine.suspend()
        self.answer = pool.submit(call, server, "PUT", "/v1/adapters/new", {"path": "given/small"})
        wait_until(lambda: self._copied(server))

    @staticmethod
    def _copied(server: ServerProcess) -> bool:
        _, cards = call(server, "GET", "/v1/adapters")
        return any(card["state"] == "loading" for card in cards["data"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def server(tiny: TinyBundle, sources: Path, state: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    flags: tuple[Any, ...] = ("--dev", "--adapter-dir", str(sources), "--state-dir", str(state))
    with serving(tiny.folder, tmp_path / "log", *flags) as found:
        yield found
    assert "Traceback" not in (tmp_path / "log").read_text()


def copies(state: Path) -> list[Path]:
    return [each for each in state.glob("*/*") if (each / "adapter.json").is_file()]


def wait_for_copy(state: Path) -> None:
    wait_until(lambda: any(list(copy.glob("*.onnx_adapter")) for copy in copies(state)))


def test_a_copy_that_vanishes_before_the_engine_reads_it(server: ServerProcess, state: Path) -> None:
    with ThreadPoolExecutor() as pool:
        loading = Loading(server, pool)
        wait_for_copy(state)
        shutil.rmtree(copies(state)[0])
        loading.engine.resume()
        status, body = loading.answer.result(PATIENCE)
    assert (status, body["error"]["code"]) == (422, "adapter_invalid")
    assert kept(state) == set()
    assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
    assert ask(server, "new", PROMPT) == ask(server, "small", PROMPT)


def test_a_copy_stays_until_the_engine_has_let_it_go(server: ServerProcess, state: Path) -> None:
    assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
    engine = server.engine()
    engine.suspend()  # as in the middle of a long step
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(call, server, "DELETE", "/v1/adapters/new")
        wait_until(lambda: "new" not in names(server))
        assert list(copies(state)[0].glob("*.onnx_adapter"))
        engine.resume()
        assert answer.result(PATIENCE)[0] == 200
    wait_until(lambda: is_empty(state))
    assert kept(state) == set()
    # Nor does an engine that is stuck keep who deletes it waiting for ever, or one that died the copy.
    assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
    engine.suspend()
    assert call(server, "DELETE", "/v1/adapters/new")[0] == 200
    assert copies(state)
    engine.kill()
    wait_until(lambda: not copies(state))
    assert ask(server, "small", PROMPT)


def test_two_servers_cannot_share_a_state_dir(server: ServerProcess, tiny: TinyBundle, state: Path) -> None:
    assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
    second = subprocess.run(
        command(tiny.folder, "--state-dir", str(state)), capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert f"--state-dir {state} is used by another server" in second.stderr
    assert kept(state) == {"new"}


def test_an_engine_that_is_killed_while_it_loads(server: ServerProcess, state: Path) -> None:
    with ThreadPoolExecutor() as pool:
        loading = Loading(server, pool)
        wait_for_copy(state)
        loading.engine.kill()
        status, body = loading.answer.result(PATIENCE)
    assert (status, body["error"]["code"]) == (500, "engine_failed")
    assert ask(server, "small", PROMPT)
    assert "new" not in names(server)
    assert kept(state) == set()
    assert call(server, "PUT", "/v1/adapters/new", {"path": "given/small"})[0] == 201
    assert kept(state) == {"new"}


def test_a_server_that_is_killed_while_it_loads(
    server: ServerProcess, tiny: TinyBundle, state: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        loading = Loading(server, pool)
        wait_for_copy(state)
        server.process.kill()
        server.process.wait()
        loading.engine.resume()
        assert psutil.wait_procs([loading.engine], timeout=PATIENCE)[1] == []
        assert loading.answer.exception(PATIENCE)
    (state / "adapters.new").write_text("half an ind")  # as if it had been killed while it wrote that
    with serving(tiny.folder, tmp_path / "again.log", "--state-dir", str(state)) as again:
        assert names(again) == {"tiny", *tiny.adapters}
        assert ask(again, "small", PROMPT)
        assert kept(state) == set()
