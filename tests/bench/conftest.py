"""Servers under load, and the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from loraplex.server.cli import app
from tests.bench.scripted_server import Scripted, scripted_server
from tests.server.process import ServerProcess, serving

DEMO = Path(__file__).parents[2] / "adapters" / "demo"


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Cli:
    """Runs commands in this process, through the app that the command `loraplex` starts."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as info:
            app([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        code = info.value.code
        if isinstance(code, str):  # what the interpreter would print
            return Ended(1, out, err + code)
        return Ended(code or 0, out, err)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Our server with the demo bundle, whose adapters may be unloaded and loaded again."""
    flags = ("--dev", "--adapter-dir", str(DEMO / "adapters"))
    with serving(DEMO, tmp_path_factory.mktemp("log") / "demo.log", *flags) as server:
        yield server
