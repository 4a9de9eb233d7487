"""The process of a step, seen from the build: started, shown on the console, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from loraplex.build.errors import StepFailed
from loraplex.build.planned_step import Step
from loraplex.build.progress import receive
from loraplex.build.step import run_step

_CONTEXT = multiprocessing.get_context("forkserver")
_LIBRARIES = "loraplex.build.step_libraries"
_LONGEST = 10
"""Seconds that a killed process may take to be gone."""
_FOLDER_BYTES = 75
"""Of the folder for temporary files: with what multiprocessing adds, a socket's address has room for no more."""


@contextlib.contextmanager
def server() -> Iterator[None]:
    """The process that steps are forked from, which starts to import their libraries. It ends with this block.

    A terminal sends Ctrl-C to every process of a command. This one and the steps take none: the build ends them. Raises
    StepFailed where it cannot be reached.
    """
    if len(os.fsencode(folder := tempfile.gettempdir())) > _FOLDER_BYTES:
        raise StepFailed(
            f"TMPDIR: {folder} is too long for the socket by which steps are started: at most {_FOLDER_BYTES} bytes"
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
    # Threads that wait by spinning cost more than they gain where anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _CONTEXT.set_forkserver_preload([_LIBRARIES])
    _start_tracker()  # started with the server it would unblock the signal before that
    others = set(psutil.Process().children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for process in set(psutil.Process().children()) - others:
            _end(process)
            with contextlib.suppress(psutil.Error):
                process.wait(0)  # or it stays in the system's table for as long as this process runs


@contextlib.contextmanager
def running(step: Step, console: Console, title: str) -> Iterator[ForkServerProcess]:
    """The process of a step, with its bars on the console. It never outlives this block."""
    read, write = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=run_step, args=(step.folder, write), name=step.name)
    process.start()
    write.close()
    with _bars(console) as bars:
        shown = threading.Thread(target=_show, args=(read, bars, bars.add_task(title, total=None, note=""), title))
        shown.start()
        try:
            yield process
        finally:
            if process.is_alive():  # else its number may be another's by now
                with contextlib.suppress(psutil.NoSuchProcess):
                    _end(psutil.Process(process.pid))
            process.join()
            shown.join()


def resident(process: ForkServerProcess) -> int:
    """Memory of a step's process, in bytes; 0 once it has ended."""
    try:
        return int(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        return 0


def _start_tracker() -> None:
    """Start the process that clears up after killed ones, which is not to tell the terminal of it."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    resource_tracker.ensure_running()
    del os.environ["PYTHONWARNINGS"]
    if before is not None:
        os.environ["PYTHONWARNINGS"] = before


def _end(process: psutil.Process) -> None:
    """Kill a process with all that it started, and wait until they are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()  # so that it starts no other meanwhile
        processes = [*process.children(recursive=True), process]
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        deadline = time.monotonic() + _LONGEST
        while any(map(_runs, processes)) and time.monotonic() < deadline:
            time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; whoever started it may not have asked yet how it did."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _show(reports: Connection, bars: Progress, task: TaskID, title: str) -> None:
    """Bring what a step's process reports onto the bar, until it closes its end."""
    shown = ""
    while (report := receive(reports)) is not None:
        if report.note:
            bars.update(task, note=report.note)
            continue
        if report.title != shown:
            shown = report.title
            bars.reset(task, description=f"{title} {shown}".strip())
        bars.update(task, completed=report.done, total=report.total or None)
