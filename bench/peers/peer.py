"""A server under comparison: started by a command that is told, waited for, and stopped in the end."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from msgspec import Struct

from loraplex.bench.errors import ServerFailed
from loraplex.server.errors import LoraplexError

START = 240.0
"""Seconds a server may take until it answers."""


class Peer(Struct, frozen=True):
    """One server that is up, and what it takes to ask it."""

    name: str
    url: str
    command: Sequence[str]
    versions: dict[str, str]
    notes: str
    """How it batches and in which format its weights are: what a row of a table has to say besides the command."""
    pid: int
    base: str = "base"
    """The base's model name."""
    scales: int | None = None
    """Adapters that a request names by scales in the field `lora`, as llama-server's do; None: by model name."""

    def model(self, adapter: int | None) -> str:
        """The model name that a request carries; None is the base."""
        return self.base if adapter is None else str(adapter)

    def fields(self, adapter: int | None) -> dict[str, Any]:
        """What only this server understands."""
        if self.scales is None:
            return {}
        # Left out, all adapters would apply at once.
        return {"lora": [{"id": index, "scale": float(index == adapter)} for index in range(self.scales)]}

    def cpu_seconds(self) -> float:
        """What its processes have computed until now."""
        return cpu_seconds(self.pid)

    def describe(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.name}: {versions}; {self.notes}\n    {shlex.join(self.command)}"


@contextmanager
def started(command: Sequence[str], url: str, log: Path) -> Iterator[int]:
    """Run a server until it answers GET /health with 200; yields its process id.

    Raises ServerFailed, with the end of its log, where it ends before that or takes more than START seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        _wait(process, command, url, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[str], command: Sequence[str], url: str, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"{command[0]} ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServerFailed(f"{command[0]} did not answer within {START:.0f} s:\n{log.read_text()[-2000:]}")


def cpu_seconds(pid: int) -> float:
    """What a process and its children have computed until now."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (each.cpu_times() for each in family))


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def stay(starting: AbstractContextManager[Peer]) -> None:
    """Start it, say what runs, and keep it up until Ctrl-C. Ends the command with status 1 where it does not start."""
    # A shell's `kill` would leave the server behind, and a job in its background ignores Ctrl-C's signal.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    try:
        with starting as peer:
            print(f"{peer.describe()}\n\nReady on {peer.url}; Ctrl-C ends it.", flush=True)
            psutil.Process(peer.pid).wait()
    except (LoraplexError, OSError) as error:
        sys.exit(f"loraplex: {error}")
    except (KeyboardInterrupt, psutil.NoSuchProcess):
        return
