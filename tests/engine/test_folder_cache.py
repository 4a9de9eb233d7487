"""The cache of linked models, which several servers may share, any of which may be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraplex.server.engine.folder_cache import discard, make, trim

OTHER = """
import sys, time
from pathlib import Path
from loraplex.server.engine.folder_cache import make

def fill(folder):
    (folder / "model").write_text("theirs")
    if sys.argv[2] == "draft":
        print("begun", flush=True)
        time.sleep(60)

held = make(Path(sys.argv[1]), "shared", fill)
print("begun", flush=True)
time.sleep(60)
"""
"""A server that takes the folder "shared", or stays in the middle of making it."""


def write(folder: Path) -> None:
    (folder / "model").write_text("ours")


def names(cache: Path) -> set[str]:
    return {each.name for each in cache.iterdir()}


def other(cache: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(cache), what], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_the_latest_stay_and_so_does_what_is_in_use(tmp_path: Path) -> None:
    oldest = make(tmp_path, "0", write)
    for name in "123":
        make(tmp_path, name, write)
    for seconds, name in enumerate("3210", 100):
        age(tmp_path / name, seconds)
    trim(tmp_path, count=1)
    assert names(tmp_path) == {"0", "3"}
    del oldest
    trim(tmp_path, count=1)
    assert names(tmp_path) == {"3"}


def test_what_others_delete_meanwhile_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "0123":
        make(tmp_path, name, write)
    look = Path.is_dir

    def is_dir(folder: Path) -> bool:
        found = look(folder)
        if folder.name == "1":
            folder.joinpath("model").unlink()
            folder.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", is_dir)
    trim(tmp_path, count=1)
    assert len(names(tmp_path)) == 1
    trim(tmp_path / "gone")


def test_what_another_server_uses_stays(tmp_path: Path) -> None:
    process = other(tmp_path, "whole")
    try:
        trim(tmp_path, count=0)
        assert (make(tmp_path, "shared", write).folder / "model").read_text() == "theirs"
    finally:
        end(process)
    trim(tmp_path, count=0)
    assert names(tmp_path) == set()
    assert (make(tmp_path, "shared", write).folder / "model").read_text() == "ours"


def test_what_a_killed_server_left_half_done_goes(tmp_path: Path) -> None:
    process = other(tmp_path, "draft")
    (draft,) = names(tmp_path)
    age(tmp_path / draft, 3600)
    held = make(tmp_path, "one", write)
    assert names(tmp_path) == {"one", draft}, "it is still at it"
    end(process)
    make(tmp_path, "two", write)
    assert names(tmp_path) == {"one", "two"}
    assert held.folder == tmp_path / "one"


def test_a_folder_that_another_finishes_first_is_taken(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        write(folder)
        assert make(tmp_path, "shared", faster).folder == tmp_path / "shared"

    def faster(folder: Path) -> None:
        (folder / "model").write_text("theirs")

    assert (make(tmp_path, "shared", slow).folder / "model").read_text() == "theirs"
    assert names(tmp_path) == {"shared"}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make(tmp_path / "cache", "shared", fail)
    assert names(tmp_path / "cache") == set()


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_others_may_use_a_folder_if_they_may_use_what_is_made_here(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = make(tmp_path, "shared", write).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_discarded_folder_is_made_anew(tmp_path: Path) -> None:
    damaged = make(tmp_path, "one", write)
    (damaged.folder / "model").write_text("damaged")
    discard(damaged)
    assert (make(tmp_path, "one", write).folder / "model").read_text() == "ours"
    (draft,) = names(tmp_path) - {"one"}
    age(tmp_path / draft, 3600)
    make(tmp_path, "two", write)
    assert names(tmp_path) == {"one", "two", draft}, "somebody may use it"
    del damaged
    make(tmp_path, "three", write)
    assert names(tmp_path) == {"one", "two", "three"}


def test_what_another_server_made_anew_is_not_discarded(tmp_path: Path) -> None:
    """Both found the same folder damaged; this one is later."""
    damaged = make(tmp_path, "one", write)
    discard(damaged)
    make(tmp_path, "one", write)
    discard(damaged)
    assert (tmp_path / "one" / "model").read_text() == "ours"


def test_a_discarded_folder_goes_once_nobody_uses_it(tmp_path: Path) -> None:
    damaged = make(tmp_path, "one", write)
    discard(damaged)
    trim(tmp_path)
    assert damaged.folder.name not in names(tmp_path)
    assert len(names(tmp_path)) == 1
    del damaged
    trim(tmp_path)
    assert names(tmp_path) == set()
