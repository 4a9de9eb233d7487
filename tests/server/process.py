"""A real server process, started and stopped as a user would."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import psutil

START_TIMEOUT = 60.0
PATIENCE = 60.0
"""Seconds in which what a test waits for comes even on a slow machine; a test that waits so long has failed."""


def wait_until(true: Callable[[], object], what: Callable[[], str] = lambda: "it did not come so far") -> None:
    """Wait until this is so; fail after PATIENCE, and say `what` is so instead."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def children(parent: int, word: str) -> list[psutil.Process]:
    """The children of a process that run and have this word in their command line."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):  # also one that has ended and is not waited for yet
            if word in child.cmdline():
                found.append(child)
    return found


@dataclass
class ServerProcess:
    """`loraplex serve` on a free port of loopback, its log in a file."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @cached_property
    def client(self) -> openai.OpenAI:
        """The official client; `serving` closes it, and with it the connections of streams that a test gave up."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def engine(self) -> psutil.Process:
        """The engine process."""
        (child,) = self.engines()
        return child

    def engines(self) -> list[psutil.Process]:
        """The engine process; none between the end of one and the start of the next."""
        return children(self.process.pid, "loraplex.server.engine.process")

    def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded body; text where it is not JSON."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of /metrics that have these labels, whatever others; 0.0 while there are none."""
        _, text = self.get("/metrics")
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = 0.0
        for line in text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and wanted <= set((match[1] or "").split(",")):
                found += float(match[2])
        return found

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has this value."""
        found: list[float] = []

        def has_it() -> bool:
            found.append(self.metric(name, **labels))
            return found[-1] == value

        wait_until(has_it, lambda: f"{name}{labels} is {found[-1]}, not {value}")

    def wait_for_line(self, text: str) -> None:
        """Wait until the log has this text."""
        wait_until(lambda: text in self.log.read_text(), self.log.read_text)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Signal the server and return its exit status."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE)


def serving(bundle: Path, log: Path, *flags: str) -> AbstractContextManager[ServerProcess]:
    """Start a server, wait until it is ready, and stop it in the end."""
    return started(command(bundle, *flags), log)


@contextmanager
def started(command: list[str], log: Path) -> Iterator[ServerProcess]:
    """The server that a command starts."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server: ServerProcess | None = None
    try:
        server = ServerProcess(process, _ready(process, log), log)
        yield server
    finally:
        if server is not None and "client" in vars(server):
            server.client.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def command(bundle: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "loraplex.server", "serve", str(bundle), "--port", "0", *flags]


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if match := re.search(r"ready on (https?://\S+);", log.read_text()):
            return match[1]
        assert process.poll() is None, f"the server ended with status {process.returncode}:\n{log.read_text()}"
        time.sleep(0.02)
    raise AssertionError(f"the server was not ready within {START_TIMEOUT:.0f} s:\n{log.read_text()}")
