"""What happens before the first request: the environment, and Ctrl-C while the server starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from loraplex.server.settings import Settings, check_environment
from tests.server.conftest import DEMO
from tests.server.process import ServerProcess, command, serving

FIRST_PROCESS = ["unshare", "--user", "--pid", "--fork", "--kill-child"]
"""Runs a command as process 1 of a namespace of its own, and ends with its status."""
NAMESPACES = shutil.which("unshare") is not None and (
    subprocess.run([*FIRST_PROCESS, "true"], check=False, capture_output=True).returncode == 0
)


def test_misspelt_variables_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_MAX_RUNING", "2")
    monkeypatch.setenv("LORAPLEX_MAX_WAITING", "3")
    with serving(DEMO, tmp_path / "log") as server:
        log = server.log.read_text()
    told = [line for line in log.splitlines() if "LORAPLEX_" in line]
    assert len(told) == 1
    assert told[0].endswith("LORAPLEX_MAX_RUNING is no setting and has no effect: did you mean LORAPLEX_MAX_RUNNING?")


def test_every_setting_is_known() -> None:
    settings = {f"LORAPLEX_{field.name.upper()}": "x" for field in fields(Settings)}
    others = {"LORAPLEX_BUNDLE": "x", "LORAPLEXING": "x", "HOME": "x"}
    assert list(check_environment(settings | others)) == []
    assert list(check_environment({"LORAPLEX_XYZZY": "x"})) == ["LORAPLEX_XYZZY is no setting and has no effect"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["imports", "engine"])
def test_ctrl_c_while_starting(moment: str) -> None:
    """To the whole group of processes, as a terminal sends it."""
    process = subprocess.Popen(
        command(DEMO), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _wait_for(process, "msgspec" if moment == "imports" else None)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in said
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.skipif(not NAMESPACES, reason="no right to make a namespace of processes")
@pytest.mark.parametrize("moment", ["imports", "engine"])
def test_sigterm_while_starting_as_the_first_process_of_a_container(moment: str) -> None:
    """Linux drops a signal there that has no handler."""
    outer = subprocess.Popen(
        [*FIRST_PROCESS, *command(DEMO)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        first = _only_child(outer)
        _wait_for(first, "msgspec" if moment == "imports" else None)
        first.send_signal(signal.SIGTERM)
        _, said = outer.communicate(timeout=30)
    finally:
        outer.kill()
        outer.wait()
    assert "Traceback" not in said
    assert outer.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_sigterm_while_starting_leaves_no_copies(tmp_path: Path) -> None:
    copies, watched = tmp_path / "copies", tmp_path / "watched"
    copies.mkdir()
    for number in range(30):
        shutil.copytree(DEMO / "adapters" / "tone", watched / f"tone-{number}")
    process = subprocess.Popen(
        command(DEMO, "--adapter-dir", str(watched)),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(copies)},
    )
    try:
        deadline = time.monotonic() + 30
        while not list(copies.glob("*/store/*/tone-*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert list(copies.glob("*/store/*/tone-*"))
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert "ready on" not in said, "it was too late"
    assert "Traceback" not in said
    assert process.returncode == 128 + signal.SIGTERM
    assert list(copies.iterdir()) == []
    assert psutil.wait_procs(children, timeout=20)[1] == []


def _only_child(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if children := psutil.Process(process.pid).children():
            return children[0]
        time.sleep(0.002)
    raise AssertionError("unshare started nothing")


def _wait_for(process: subprocess.Popen[str] | psutil.Process, library: str | None) -> None:
    """Until the process has mapped a library of one of its imports, or else until it has started the engine."""
    deadline = time.monotonic() + 30
    task = Path(f"/proc/{process.pid}")
    while time.monotonic() < deadline and psutil.pid_exists(process.pid):
        if library is not None and library in (task / "maps").read_text():
            return
        if library is None and (task / f"task/{process.pid}/children").read_text().strip():
            return
        time.sleep(0.002)
    raise AssertionError("the server never came so far")


def test_a_slash_too_many_is_no_redirect(tiny_server: ServerProcess) -> None:
    status, body = tiny_server.get("/v1/models/")
    assert status == 404
    assert body["error"] == {
        **{"message": "GET /v1/models/: there is no such path", "type": "invalid_request_error"},
        **{"param": None, "code": "not_found"},
    }
