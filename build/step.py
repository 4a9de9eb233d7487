"""One step of a build, in a process of its own.

Such a process gives its memory back, can be killed for want of it without taking the build along, and lets the peak be
measured. It is forked from a server that has the libraries imported: that takes longer than many a step.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from loraplex.build import progress
from loraplex.build.exhaustion import disk_full, out_of_memory

WORKFLOW = "workflow.json"
PASSES = "passes.json"
OUTCOME = "outcome.json"
LOG = "log.txt"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a step ended and what its process needed. Missing where the process was killed."""

    seconds: float
    peak_bytes: int
    peak_device_bytes: int
    error: str = ""
    """Class and message of what a pass raised."""
    disk_full: bool = False
    out_of_memory: bool = False


class _Kept(logging.Handler):
    """Keeps the first exception that is logged: Olive goes on after one and ends with status 0."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.error is None:
            self.error = record.exc_info[1]


def run_step(folder: Path, reports: Connection) -> None:
    """Run FOLDER/workflow.json with the passes of passes.json beside FOLDER and write outcome.json, also after failure.

    What the libraries print goes to log.txt, their progress bars go to `reports`.
    """
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_die_with_the_build, daemon=True).start()
    # AutoAWQ collects garbage hundreds of times, and the libraries are a million objects to look through.
    gc.freeze()
    # Olive takes names of files in the current folder for paths wherever they stand.
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        _run(folder, reports)


def _run(folder: Path, reports: Connection) -> None:
    progress.send_bars(reports)
    start = time.monotonic()
    import datasets
    from olive.workflows import run

    datasets.config.HF_DATASETS_CACHE = folder.parent / "datasets-cache"
    kept = _Kept()
    logging.getLogger("olive").addHandler(kept)
    error: BaseException | None
    try:
        run(str(folder / WORKFLOW), package_config=str(folder.parent / PASSES))
        error = kept.error
    except Exception as raised:
        traceback.print_exc()
        error = raised
    outcome = Outcome(
        seconds=time.monotonic() - start,
        peak_bytes=_peak_bytes(),
        peak_device_bytes=_peak_device_bytes(),
        error=_describe(error) if error is not None else "",
        disk_full=disk_full(error),
        out_of_memory=out_of_memory(error),
    )
    (folder / OUTCOME).write_bytes(msgspec.json.encode(outcome))


def _describe(error: BaseException) -> str:
    from loraplex.server.errors import LoraplexError

    if isinstance(error, LoraplexError):
        return error.message
    return f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"


def _die_with_the_build() -> None:
    """A build that was killed cannot end its step, which would go on writing where the next one works."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _peak_bytes() -> int:
    import resource

    # Kilobytes, except on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_device_bytes() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
