"""What a server without --state-dir keeps in the folder for temporary files, and what is left of it after a kill."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from loraplex.server.errors import StateInvalid
from loraplex.server.scratch import scratch_folder
from tests.server.calls import ask, call
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving

PROMPT = [12, 52, 7]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the servers of a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def load(server: ServerProcess) -> int:
    return call(server, "PUT", "/v1/adapters/new", {"path": "small"})[0]


def test_what_a_killed_server_left_goes_at_the_next_start(tiny: TinyBundle, temporary: Path, tmp_path: Path) -> None:
    flags = ("--dev", "--adapter-dir", str(tiny.folder / "adapters"))
    with serving(tiny.folder, tmp_path / "first.log", *flags) as first:
        assert load(first) == 201
        (killed,) = temporary.iterdir()
        first.process.kill()
        first.process.wait()
    assert list(killed.glob("store/*/new/*.onnx_adapter"))
    with serving(tiny.folder, tmp_path / "second.log", *flags) as second:
        assert not killed.exists()
        assert load(second) == 201
        expected = ask(second, "new", PROMPT)
        (used,) = temporary.iterdir()
        with serving(tiny.folder, tmp_path / "third.log", *flags) as third:
            assert used.exists(), "it is in use"
            assert load(third) == 201
            assert ask(third, "new", PROMPT) == ask(second, "new", PROMPT) == expected
            assert len(list(temporary.iterdir())) == 2
        assert list(temporary.iterdir()) == [used]
        assert call(second, "PUT", "/v1/adapters/new", {"path": "large"})[0] == 200
    assert list(temporary.iterdir()) == []


def test_what_is_not_a_servers_stays(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with scratch_folder() as store:
        (store / "adapters.json").write_text("{}")
        shutil.copytree(store.parent, elsewhere)
        shutil.copytree(store, temporary / "loraplex-adapters")
    (temporary / "loraplex-notes").mkdir()
    (temporary / "loraplex-link").symlink_to(elsewhere)
    shutil.copytree(elsewhere, temporary / "another-server")
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    shutil.copytree(elsewhere, temporary / "loraplex-12345678")
    with scratch_folder():
        assert not (temporary / "loraplex-12345678").exists(), "whose server is gone"
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def test_what_was_half_deleted_goes(temporary: Path) -> None:
    with scratch_folder() as store:
        left = shutil.copytree(store.parent, temporary / "loraplex-12345678")
    (left / "store").rmdir()
    with scratch_folder():
        assert not left.exists()


def test_no_place_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StateInvalid, match=r"there is no place for adapters: .*nowhere"), scratch_folder():
        pass
