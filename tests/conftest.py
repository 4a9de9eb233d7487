"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest

from tests.cli import Cli


def pytest_configure() -> None:
    # A shell that runs the tests in the background has them ignore SIGINT, and so would the servers that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command `loraplex`."""
    return Cli(capsys)
