"""Bundles of the tiny checkpoints, built once, with adapters of several ranks and targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import Family, make_checkpoint
from tests.engine.lanes import Model, build


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Model]:
    """Float32 bundles of a plain family, one with biases and one with packed projections. Read only."""
    families: tuple[Family, ...] = ("llama", "qwen2", "phi3")
    made = {}
    for family in families:
        folder = tmp_path_factory.mktemp(family)
        made[family] = build(make_checkpoint(folder / "checkpoint", family), folder, "float32")
    return made


@pytest.fixture(scope="session")
def llama(models: dict[Family, Model]) -> Model:
    return models["llama"]


@pytest.fixture(scope="session")
def int4(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The llama checkpoint and its adapters in int4. Read only."""
    return build(llama.checkpoint, tmp_path_factory.mktemp("int4"), "int4")


@pytest.fixture
def folder(llama: Model) -> Path:
    return llama.bundle.variant("generator")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests, as by the lanes of a server that is started again."""
    return tmp_path_factory.mktemp("cache")
