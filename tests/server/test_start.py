"""What happens before the first request: the environment, and Ctrl-C while the server starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import pytest

from loraplex.server.settings import Settings, check_environment
from tests.server.conftest import DEMO
from tests.server.process import ServerProcess, command, serving


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


def _wait_for(process: subprocess.Popen[str], library: str | None) -> None:
    """Until the process has mapped a library of one of its imports, or else until it has started the engine."""
    deadline = time.monotonic() + 30
    task = Path(f"/proc/{process.pid}")
    while time.monotonic() < deadline and process.poll() is None:
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
