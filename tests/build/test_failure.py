"""A build that something happens to: another build, no room on the disk, no memory, a kill."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from loraplex.build.exhaustion import disk_full, out_of_memory
from tests.build.command import BuildHere
from tests.checkpoints import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COMMAND = [sys.executable, "-W", "ignore", "-m", "loraplex.server", "build"]
STEPS = {"max_steps": 100_000, "learning_rate": 1e-4, "save_steps": 10}


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build in `tmp_path` whose first step trains for hours."""
    make_checkpoint(tmp_path / "checkpoint", "llama")
    row = json.dumps({"prompt": "w9 w10", "response": "w11 w12"})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 8)
    adapter = {"data": "rows.jsonl", "text_template": "{prompt} {response}", "rank": 2, "training": STEPS}
    recipe = {"base": "checkpoint", "quantization": {"algorithm": "none"}, "adapters": {"tone": adapter}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [*COMMAND, "recipe.yaml", "-o", "bundle"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any((tmp_path / "bundle.work/train-tone/checkpoints").glob("checkpoint-*")), process)
    yield process
    process.kill()
    process.wait()
    if process.stderr:
        process.stderr.close()


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def step_of(build: int) -> psutil.Process:
    """The process of a build's step: it is the server's child that has all of its libraries."""
    return max(psutil.Process(build).children(recursive=True), key=lambda each: each.create_time())


def test_two_builds_in_one_work_folder_and_a_build_that_is_killed(
    training: subprocess.Popen[str], tmp_path: Path, build_here: BuildHere
) -> None:
    for options in ((), ("--resume",)):
        second = build_here(tmp_path, "recipe.yaml", "-o", "bundle", *options)
        assert second.status == 2
        assert second.err.strip() == (
            "loraplex: another build runs in bundle.work: wait for it, or give another --work"
        )
    step = step_of(training.pid)
    training.kill()
    training.wait()
    # Else it would go on writing where the next build works.
    step.wait(timeout=60)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["adapters"]["tone"]["training"] |= {"max_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = build_here(tmp_path, "recipe.yaml", "-o", "bundle", "--resume")
    assert result.status == 0, result.err


def test_a_step_that_is_killed(training: subprocess.Popen[str], tmp_path: Path) -> None:
    step_of(training.pid).send_signal(signal.SIGKILL)
    _, told = training.communicate(timeout=300)
    assert training.returncode == 1
    first, log, again = told.splitlines()[-3:]
    assert first.startswith("loraplex: step 1/4 train tone failed: it was killed at ")
    assert "of memory, of which this machine has " in first
    assert first.endswith("of them free: it needs more")
    assert log == f"  log: {tmp_path}/bundle.work/train-tone/log.txt"
    assert again.endswith("build recipe.yaml -o bundle --resume")


def test_out_of_memory(tmp_path: Path, build_here: BuildHere) -> None:
    make_checkpoint(tmp_path / "checkpoint", "llama", hidden_size=1024, intermediate_size=4096, vocab_size=8192)
    command = [*COMMAND, "--base", "checkpoint", "--quantization", "none", "-o", "bundle"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "bundle.work/export/log.txt").exists, process)
    step = step_of(process.pid)
    # Over what it began with, however far it has come by now: that of the process it was forked from.
    limit = psutil.Process(step.ppid()).memory_info().vms + 250_000_000
    resource.prlimit(step.pid, resource.RLIMIT_AS, (limit, limit))
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1
    first, log, again = told.splitlines()[-3:]
    assert first.startswith("loraplex: step 1/2 export failed: out of memory: it had ")
    assert " and wanted more; this machine has " in first
    assert log == f"  log: {tmp_path}/bundle.work/export/log.txt"
    assert again.endswith("--resume")
    assert not (tmp_path / "bundle").exists()
    result = build_here(tmp_path, *command[len(COMMAND) :], "--resume")
    assert result.status == 0, result.err


def can_mount() -> bool:
    script = "mount -t tmpfs -o size=1m tmpfs /mnt"
    unshare = shutil.which("unshare")
    return (
        unshare is not None and not subprocess.run([unshare, "-rm", "sh", "-c", script], capture_output=True).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="needs a small disk, which only a user namespace or root can mount")
@pytest.mark.parametrize(("size", "words"), [("4m", "has too little room: "), ("12m", "the disk is full: ")])
def test_disk_full(size: str, words: str, short_path: Path) -> None:
    """16 MB of weights on a small disk. Where a step had begun, the same work folder is then given room."""
    make_checkpoint(short_path / "checkpoint", "llama", hidden_size=256, intermediate_size=1024, vocab_size=4096)
    (short_path / "bundle.work").mkdir()
    command = f"{sys.executable} -W ignore -m loraplex.server build --base checkpoint --quantization none -o bundle"
    begun = size == "12m"
    script = f"""
        mount -t tmpfs -o size={size} tmpfs bundle.work
        {command} 2>first.txt; echo $? >>first.txt
        ls >names.txt
    """
    again = f"""
        mount -o remount,size=500m bundle.work
        {command} --resume 2>second.txt; echo $? >>second.txt
    """
    environment = os.environ | {"TMPDIR": str(short_path / "bundle.work")}
    whole = script + again if begun else script
    subprocess.run(["unshare", "-rm", "sh", "-c", whole], cwd=short_path, env=environment, check=True)
    told = (short_path / "first.txt").read_text().splitlines()
    assert told[-1] == "1", told
    step = next(line for line in told if line.startswith("loraplex: step "))
    assert words in step
    assert " are free, " in step
    assert " needs " in step
    assert "bundle" not in (short_path / "names.txt").read_text().split()
    if begun:
        assert (short_path / "second.txt").read_text().splitlines()[-1] == "0"
        assert (short_path / "bundle/verification.json").is_file()


def test_the_name_of_the_folder_for_temporary_files_is_too_long(
    tmp_path: Path, build_here: BuildHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "checkpoint", "llama")
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    ended = build_here(tmp_path, "--base", "checkpoint", "--quantization", "none", "-o", "bundle")
    assert ended.status == 1
    assert f"TMPDIR: {long} is too long" in ended.err


def test_what_libraries_say() -> None:
    """Of the system's errors, in C++ and Rust."""
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    torch = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")
    wrapped = ValueError("it failed")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert [disk_full(each) for each in (rust, torch, wrapped, ValueError("28"), None)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert [out_of_memory(each) for each in (rust, torch, MemoryError(), None)] == [False, True, True, False]
