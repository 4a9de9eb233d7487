"""What `python -m tests.clients` does, where it has made its environments before."""

from __future__ import annotations

import pytest

from tests.clients.__main__ import ENVIRONMENTS, PACKAGES, main


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", PACKAGES)
def test_a_client_finds_what_it_expects(client: str) -> None:
    if not (ENVIRONMENTS / client / "complete").exists():
        pytest.skip(f"run `python -m tests.clients {client}` once: it makes an environment for it")
    assert main([client]) == 0
