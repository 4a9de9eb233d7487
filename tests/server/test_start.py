"""What happens before the first request: the environment, and Ctrl-C while the server starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from loraplex.server.settings import Settings, check_environment
from tests.cli import Cli
from tests.server.conftest import DEMO
from tests.server.process import PATIENCE, ServerProcess, command, serving, wait_until

FIRST_PROCESS = ["unshare", "--user", "--pid", "--fork", "--kill-child"]
"""Runs a command as process 1 of a namespace of its own, and ends with its status."""
HOLDING = """
import os, select, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            open({mark!r}, "w").close()
            ended = select.poll()
            ended.register(0, 0)
            while not ended.poll(20):
                pass
            os._exit(1)

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize for which the import of a library lasts until the end of the standard input."""
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


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--threads", "100000", "Must be <= 1024."),
        ("--threads", "-1", "Must be >= 0."),
        ("--threads", str(10**30), "Must be <= 1024."),
        ("--prefill-chunk", str(10**30), "Must be"),
        ("--kv-cache-mib", str(10**30), "Must be"),
        ("--request-timeout", "nan", "Must be > 0."),
        ("--host", "", "It is empty"),
        ("--keys", "", "It is empty"),
        ("--state-dir", "", "It is empty"),
        ("--allowed-origins", "https://chat.example.com/", "is no origin"),
        ("--allowed-origins", "chat.example.com", "is no origin"),
        ("--otlp-endpoint", "localhost:4318", "no http:// or https:// URL"),
        ("--otlp-endpoint", "http://", "it has no host"),
        ("--otlp-endpoint", "http://[::1", "Invalid IPv6 URL"),
        ("--otlp-endpoint", "http://[::1]:99999", "Port out of range"),
        ("--otlp-endpoint", "http://local host:4318", "there is white space in it"),
        ("--otlp-endpoint", "http://localhost:4318?token=1", "nothing may follow its path"),
    ],
)
def test_values_out_of_range_name_their_flag(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, reason: str
) -> None:
    """As flags and as variables, of which one that is set to nothing must not mean every interface or this folder."""
    found = cli("serve", DEMO, flag, value)
    assert (found.status, found.out) == (2, "")
    assert flag in found.err
    assert reason in _words(found.err)
    variable = f"LORAPLEX_{flag.removeprefix('--').replace('-', '_').upper()}"
    monkeypatch.setenv(variable, value)
    found = cli("serve", DEMO)
    assert found.status == 2
    assert variable in found.err
    assert reason in _words(found.err)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dev", "--host", "0.0.0.0"], "--dev lets anyone who reaches 0.0.0.0 manage adapters: use --keys there."),
        (["--dev", "--allowed-origins", "*"], "--dev lets pages of --allowed-origins manage adapters: name them"),
        (["--ssl-keyfile", "key.pem"], "--ssl-keyfile needs --ssl-certfile."),
        (["--engine", "batched", "--device", "cuda"], "--engine batched runs on the CPU: add --device cpu"),
        (["--state-dir", "kept", "--adapter-dir", "kept/.."], None),
        (["--state-dir", "kept", "--adapter-dir", "kept/new"], "give each a folder of its own."),
        (["--state-dir", "kept", "--adapter-dir", "other/../kept"], "give each a folder of its own."),
    ],
)
def test_settings_that_cannot_be_together_are_refused_before_anything_is_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], reason: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    found = cli("serve", tmp_path / "no-bundle", *flags)
    if reason is None:
        assert found.status == 1
        assert "no-bundle is not a bundle" in found.err
    else:
        assert (found.status, found.out) == (2, "")
        assert reason in _words(found.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--host", "--link-cache"])
def test_values_that_are_not_utf_8_name_their_flag(flag: str) -> None:
    ended = subprocess.run(
        [*command(DEMO), flag, b"\xff"], check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert flag in ended.stderr
    assert "It is not UTF-8." in _words(ended.stderr)


def _words(text: str) -> str:
    """What stands in a frame, on one line."""
    return " ".join(text.replace("│", " ").split())


class Held:
    """A server that does not get further than to an import: one of its own, or of its engine's."""

    def __init__(self, moment: str, folder: Path) -> None:
        self.begun = folder / "begun"
        library = "msgspec" if moment == "imports" else "onnxruntime_genai"
        (folder / "sitecustomize.py").write_text(HOLDING.format(library=library, mark=str(self.begun)))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}

    def start(self, command: list[str], *, start_new_session: bool = False) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=start_new_session,
        )
        wait_until(lambda: self.begun.exists() or process.poll() is not None)
        return process


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["imports", "engine"])
def test_ctrl_c_while_starting(moment: str, tmp_path: Path) -> None:
    """To the whole group of processes, as a terminal sends it."""
    process = Held(moment, tmp_path).start(command(DEMO), start_new_session=True)
    try:
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in said
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.skipif(not NAMESPACES, reason="no right to make a namespace of processes")
@pytest.mark.parametrize("moment", ["imports", "engine"])
def test_sigterm_while_starting_as_the_first_process_of_a_container(moment: str, tmp_path: Path) -> None:
    """Linux drops a signal there that has no handler."""
    outer = Held(moment, tmp_path).start([*FIRST_PROCESS, *command(DEMO)])
    try:
        (first,) = psutil.Process(outer.pid).children()
        first.send_signal(signal.SIGTERM)
        _, said = outer.communicate(timeout=PATIENCE)
    finally:
        outer.kill()
        outer.wait()
    assert "Traceback" not in said
    assert outer.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_sigterm_while_starting_leaves_no_copies(tmp_path: Path) -> None:
    copies, watched = tmp_path / "copies", tmp_path / "watched"
    copies.mkdir()
    for number in range(600):  # seconds of loading
        shutil.copytree(DEMO / "adapters" / "tone", watched / f"tone-{number}")
    process = subprocess.Popen(
        command(DEMO, "--adapter-dir", str(watched)),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(copies)},
    )
    try:
        wait_until(lambda: any(copies.glob("*/store/*/tone-*")))
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert "ready on" not in said, "it was too late"
    assert "Traceback" not in said
    assert process.returncode == 128 + signal.SIGTERM
    assert list(copies.iterdir()) == []
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


def test_a_slash_too_many_is_no_redirect(tiny_server: ServerProcess) -> None:
    status, body = tiny_server.get("/v1/models/")
    assert status == 404
    assert body["error"] == {
        **{"message": "GET /v1/models/: there is no such path", "type": "invalid_request_error"},
        **{"param": None, "code": "not_found"},
    }
