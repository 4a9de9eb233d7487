"""Ctrl-C and SIGTERM at every stage of a build: it ends at once, leaves nothing, and `--resume` goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from loraplex.build.assembly import put_in_place
from loraplex.build.findings import read_findings
from loraplex.build.interruption import Interrupted, raises
from tests.build.test_workflow import prepare
from tests.checkpoints import make_checkpoint
from tests.hub import running_hub
from tests.server.process import wait_until

COMMAND = [sys.executable, "-W", "ignore", "-m", "loraplex.server", "build", "--output", "bundle", "--resume"]
STEPS = ("quantize", "train-travel", "export", "adapters", "verify")


def everyone(build: subprocess.Popen[str], number: int) -> None:
    """As a terminal does for Ctrl-C."""
    os.killpg(build.pid, number)


def the_build(build: subprocess.Popen[str], number: int) -> None:
    build.send_signal(number)


WAYS: tuple[tuple[signal.Signals, Callable[[subprocess.Popen[str], int], None], int], ...] = (
    (signal.SIGINT, everyone, 130),
    (signal.SIGINT, the_build, 130),
    (signal.SIGTERM, the_build, 143),
)
"""What is sent to whom, and the exit status."""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_build_that_is_interrupted_again_and_again(tmp_path: Path, short_path: Path) -> None:
    """While rows are read, while the libraries are imported for the steps, and in each step; each way in turn."""
    ways = itertools.cycle(WAYS)
    prepare(tmp_path, "llama", "awq")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del recipe["adapters"]["tone"]
    # Every one of these builds would import transformers' trainer to check them.
    del recipe["adapters"]["travel"]["training"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    os.mkfifo(tmp_path / "rows.jsonl")
    recipe["evaluation"] = {"data": "rows.jsonl"}
    (tmp_path / "waiting.yaml").write_text(yaml.safe_dump(recipe))
    work = tmp_path / "bundle.work"

    def interrupt(ready: Callable[[subprocess.Popen[str]], bool], recipe: str = "recipe.yaml") -> str:
        """What a build says that is interrupted as soon as it is ready for that."""
        number, send, status = next(ways)
        build = subprocess.Popen(
            [*COMMAND, recipe],
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(short_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            while not ready(build):
                assert build.poll() is None, build.communicate()
                time.sleep(0.02)
            started = [each for each in psutil.Process(build.pid).children(recursive=True) if not is_tracker(each)]
            send(build, number)
            _, told = build.communicate(timeout=120)
        finally:
            build.kill()
            build.wait()
        assert build.returncode == status, told
        assert "Traceback" not in told
        wait_until(lambda: not [each for each in started if runs(each)])
        assert not (tmp_path / "bundle").exists()
        assert not list(tmp_path.glob(".*"))
        return told

    # A build that reads rows which nobody writes.
    with open_pipe(tmp_path / "rows.jsonl") as is_read:
        assert interrupt(lambda _: is_read(), "waiting.yaml") == "\nloraplex: interrupted\n"
    assert not work.exists()
    goes_on = "loraplex: interrupted; go on with: loraplex build --output bundle --resume recipe.yaml"
    assert goes_on in interrupt(lambda build: any(map(is_server, psutil.Process(build.pid).children())))
    for step in STEPS:
        log = work / step / "log.txt"
        log.unlink(missing_ok=True)
        assert goes_on in interrupt(partial(is_running, log))
    result = subprocess.run([*COMMAND, "recipe.yaml"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("kept from an earlier run") >= len(STEPS) - 2
    assert read_findings(tmp_path / "bundle").passed
    assert not [path for path in short_path.iterdir() if any(path.iterdir())]


@pytest.mark.slow
def test_a_download_that_is_interrupted(tmp_path: Path) -> None:
    """Of a base, which threads of huggingface_hub do."""
    with running_hub(tmp_path / "hub") as hub:
        hub.add("acme/base", make_checkpoint(tmp_path / "checkpoint"))
        with hub.stalled():
            build = subprocess.Popen(
                [*COMMAND, "--base", "acme/base"],
                cwd=tmp_path,
                env=hub.environment(tmp_path / "home"),
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            while not any(each.startswith("GET") and "/resolve/" in each for each in hub.requests()):
                assert build.poll() is None, build.communicate()
                time.sleep(0.01)
            os.killpg(build.pid, signal.SIGINT)
            _, told = build.communicate(timeout=60)
    assert build.returncode == 130
    assert told.endswith("\nloraplex: interrupted\n")
    assert "Traceback" not in told
    assert not list(tmp_path.glob("bundle*"))


def is_running(log: Path, _: subprocess.Popen[str]) -> bool:
    """Whether a step is at its work."""
    return log.is_file() and "Running pass" in log.read_text()


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_tracker(process: psutil.Process) -> bool:
    """Whether a process is multiprocessing's, which waits for the build's end to clear up after it."""
    return "resource_tracker" in command_line(process)


def is_server(process: psutil.Process) -> bool:
    return "multiprocessing.forkserver" in command_line(process)


def command_line(process: psutil.Process) -> str:
    """Empty where it has ended by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def open_pipe(path: Path) -> Iterator[Callable[[], bool]]:
    """Opens a pipe for writing once somebody reads from it: what it gives tells whether that is so."""
    opened: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    try:
        yield is_read
    finally:
        for each in opened:
            os.close(each)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back what signals do in this process."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_bundle_that_was_to_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bundle", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "draft":
            signal.raise_signal(signal.SIGTERM)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(Interrupted) as told, raises():
        put_in_place(tmp_path / "draft", tmp_path / "bundle", tmp_path / "replaced")
    assert told.value.status == 143
    assert (tmp_path / "bundle/name").read_text() == "bundle"
    signal.raise_signal(signal.SIGTERM)  # a second one does not stop the clearing up
    monkeypatch.undo()
    put_in_place(tmp_path / "draft", tmp_path / "bundle", tmp_path / "replaced")
    assert (tmp_path / "bundle/name").read_text() == "draft"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("handlers")
def test_what_runs_in_the_background_of_a_shell_takes_no_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with raises():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
