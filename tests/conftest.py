"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.cli import Cli

# An example that took long says that the machine was busy, and so do few that were found in some time.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_configure() -> None:
    # A shell that runs the tests in the background has them ignore SIGINT, and so would the servers that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command `loraplex`."""
    return Cli(capsys)
