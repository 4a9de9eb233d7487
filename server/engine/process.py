"""The engine process: owns the model, its adapters and every running sequence.

It is a process of its own because onnxruntime-genai holds Python's GIL for the whole of a forward pass, and because a
crash in native code must not take the API down. It ends when its standard input does, that is, when its parent does.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from msgspec import Struct

from loraplex.server.bundle import AdapterManifest, Base
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import (
    HEADER,
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    Cancel,
    Command,
    LoadAdapter,
    Output,
    PinAdapter,
    Ping,
    Pong,
    Report,
    Start,
    Started,
    StartFailed,
    Step,
    Submit,
    UnloadAdapter,
    pack,
    unpack_command,
)
from loraplex.server.errors import AdapterInvalid, LoraplexError
from loraplex.server.logs import configure

STOP_AFTER = 5.0
"""Seconds a step may still take after the parent is gone."""


OpenLane = Callable[[Start], tuple[Lane, int]]
"""Loads what a Start asks for: the lane, and how many sequences should run at the same time. Raises BundleInvalid."""


def open_model(start: Start) -> tuple[Lane, int]:
    """The lane that runs the bundle's base."""
    # Imported late: the telemetry choice must stand before onnxruntime-genai is loaded.
    from loraplex.server.engine.opening import max_running, open_lane

    lane = open_lane(start)
    return lane, max_running(start, lane)


class Checked(Struct, frozen=True):
    """An adapter after its checks, which run beside the steps: a manifest, or what is wrong."""

    name: str
    folder: Path
    manifest: AdapterManifest | None
    problem: str = ""


class Leaving(Struct, frozen=True):
    """An adapter that is to be unloaded, once the checks before it are over: one of them may be its own."""

    name: str


Item = Command | Checked | Leaving | AdapterUnloaded
"""What the thread that owns the lane has to see to: commands, and what other threads came to."""


class Border:
    """The engine's end of the two pipes; commands are read by a thread of their own."""

    def __init__(self) -> None:
        # Native libraries print to standard output; the reports get a descriptor that no one else knows.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._commands: SimpleQueue[Item | None] = SimpleQueue()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def _read(self) -> None:
        stream = sys.stdin.buffer
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            (length,) = HEADER.unpack(header)
            if len(body := stream.read(length)) < length:
                break
            self._commands.put(unpack_command(body))
        self._commands.put(None)
        threading.Timer(STOP_AFTER, os._exit, (1,)).start()

    def receive(self, wait: bool) -> Item | None:
        """The next command; None once the parent is gone. Raises queue.Empty when there is none and `wait` is False."""
        return self._commands.get(block=wait)

    def post(self, item: Item) -> None:
        """Hand a result of another thread to the one that receives."""
        self._commands.put(item)

    def send(self, report: Report) -> None:
        """Write one report; raises BrokenPipeError once the parent is gone."""
        data = memoryview(pack(report))
        while data:
            data = data[os.write(self._out, data) :]


def serve(border: Border, open_lane: OpenLane) -> None:
    """Run until the parent closes the pipe."""
    start = border.receive(wait=True)
    if not isinstance(start, Start):
        return
    versions = _versions()
    if "onnxruntime-genai" in versions and "onnxruntime-genai-cuda" in versions:
        border.send(
            StartFailed(
                "loraplex[cpu] and loraplex[cuda] are both installed and overwrite each other: make a new environment "
                "with one of them"
            )
        )
        return
    configure(start.log_level, start.log_format)
    if not start.telemetry:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        lane, running = open_lane(start)
    except ImportError as error:
        border.send(StartFailed(f"{error}; install loraplex[cpu] or loraplex[cuda]"))
        return
    except LoraplexError as error:
        border.send(StartFailed(error.message))
        return
    unsupported = sorted(lane.unsupported)
    border.send(
        Started(lane.name, lane.device, start.threads, versions, unsupported, running, lane.kv_tokens, lane.places)
    )
    checks = ThreadPoolExecutor(1, "checks")
    while True:
        try:
            command = border.receive(wait=not lane.busy)
        except Empty:
            outputs: list[Output] = lane.step()
            if outputs:
                border.send(Step(outputs, lane.kv_usage))
            continue
        match command:
            case None:
                return
            case Submit():
                lane.submit(command)
            case Cancel():
                lane.cancel(command.sequence)
            case LoadAdapter(name, folder):
                checks.submit(_check, border, name, Path(folder), start.base)
            case Checked(name, folder, manifest, problem):
                try:
                    if manifest is None:
                        raise AdapterInvalid(problem)
                    lane.load_adapter(name, folder, manifest)
                except LoraplexError as error:
                    border.send(AdapterRefused(name, error.message))
                else:
                    border.send(AdapterLoaded(name, manifest))
            case UnloadAdapter(name):
                checks.submit(border.post, Leaving(name))
            case Leaving(name):
                if reading := lane.unload_adapter(name):
                    threading.Thread(target=_wait, args=(border, name, reading), name="unload", daemon=True).start()
                else:
                    border.send(AdapterUnloaded(name))
            case AdapterUnloaded():
                border.send(command)
            case PinAdapter(name, pinned):
                lane.pin_adapter(name, pinned)
            case Ping():
                border.send(Pong())


def _check(border: Border, name: str, folder: Path, base: Base) -> None:
    # Imported late: the telemetry choice must stand before onnxruntime is loaded.
    from loraplex.server.engine.adapter_file import check_adapter

    try:
        checked = Checked(name, folder, check_adapter(folder, base))
    except LoraplexError as error:
        checked = Checked(name, folder, None, error.message)
    except Exception as error:  # a file like nothing foreseen must not leave its loader waiting
        traceback.print_exc()
        checked = Checked(name, folder, None, f"adapter {name}: {error}")
    border.post(checked)


def _wait(border: Border, name: str, reading: Collection[Future[Any]]) -> None:
    wait(reading)
    border.post(AdapterUnloaded(name))


def _versions() -> dict[str, str]:
    found = {}
    for package in ("loraplex", "onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(open_lane: OpenLane = open_model) -> None:
    # Ctrl-C, and a service manager's SIGTERM, reach every process of the server; the API process decides when the
    # engine ends, since streams may still have to drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        # What the watchdog asks of a process that hangs: where each thread is, which needs no GIL to be told.
        faulthandler.register(signal.SIGUSR1)
    # Native calls hold the GIL, so the reading thread gets it only in between: let it ask early.
    sys.setswitchinterval(0.0005)
    code = 0
    try:
        serve(Border(), open_lane)
    except BrokenPipeError:
        pass
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    # Nothing is left to save, and destructors of native libraries at exit are where they crash.
    os._exit(code)


if __name__ == "__main__":
    main()
