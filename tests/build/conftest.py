"""One llama checkpoint with its bundle, which most tests here only read, and builds in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from loraplex.server.bundle import Base, Bundle
from tests.build.command import BuildHere
from tests.checkpoints import make_adapter, make_checkpoint
from tests.cli import Cli


@dataclass(frozen=True)
class Built:
    """A bundle with what it was made from: the checkpoint and PEFT folders by adapter name."""

    bundle: Bundle
    checkpoint: Path
    peft: dict[str, Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama checkpoint. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama")


@pytest.fixture(scope="session")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Its float32 bundle with adapters of several ranks, one of them partial with patterns. Read only."""
    from loraplex.build.assembly import build_bundle

    folder = tmp_path_factory.mktemp("built")
    peft = {
        "four": make_adapter(checkpoint, folder / "four", rank=4, alpha=8, seed=1),
        "eight": make_adapter(checkpoint, folder / "eight", rank=8, alpha=4, seed=2),
        "three": make_adapter(checkpoint, folder / "three", rank=3, alpha=6, use_rslora=True, seed=3),
        "partial": make_adapter(
            checkpoint,
            folder / "partial",
            rank=4,
            alpha=8,
            targets=["q_proj", "v_proj", "o_proj", "down_proj"],
            rank_pattern={"v_proj": 2, r"layers\.1\.mlp\.down_proj": 7, "self_attn.q_proj": 1},
            alpha_pattern={"o_proj": 12, r"model.layers.0.self_attn.v_proj": 3},
            seed=4,
        ),
    }
    bundle = build_bundle(checkpoint, peft, folder / "bundle", name="tiny", precision="float32")
    return Built(bundle, checkpoint, peft)


@pytest.fixture
def base(built: Built) -> Base:
    """What the bundle says of its base."""
    return built.bundle.manifest.base


@pytest.fixture
def peft(built: Built, tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoiled."""
    return Path(shutil.copytree(built.peft["four"], tmp_path / "peft"))


@pytest.fixture(scope="package")
def step_server() -> Iterator[None]:
    """What the builds of this process fork their steps from: one for all, since its start takes longer than a build."""
    from loraplex.build.step_process import server

    with patch.dict(os.environ), server():
        yield


@pytest.fixture
def build_here(cli: Cli, step_server: None) -> BuildHere:  # noqa: ARG001
    """The command `loraplex build`, run in this process."""
    return BuildHere(cli)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder as `tmp_path` is, for temporary files of a build: the name of its socket there may have 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
