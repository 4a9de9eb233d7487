"""The command `loraplex`, run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from loraplex.server.cli import app


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Cli:
    """Runs commands through the app that the command starts."""

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
