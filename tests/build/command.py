"""`loraplex build` in a folder: as a process of its own, as a user runs it, or in the process of the tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

from tests.cli import Cli, Ended


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as a process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "loraplex.server", "build", *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )


class BuildHere:
    """Runs it in this process, which has its libraries imported."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli

    def __call__(self, folder: Path, *arguments: str) -> Ended:
        given = ("build", *arguments)
        with contextlib.chdir(folder), patch.object(sys, "argv", ["loraplex", *given]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._cli(*given)
