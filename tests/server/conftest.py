"""Servers that the tests of a session share, and the tiny bundle whose every answer PEFT can give too."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import make_adapter, make_checkpoint, quiet
from tests.server.calls import ask
from tests.server.process import ServerProcess, serving, started

DEMO = Path(__file__).parents[2] / "adapters" / "demo"


def scripted(log: Path, engine_options: str, *flags: str) -> AbstractContextManager[ServerProcess]:
    """The demo's server in front of an engine that says a script's tokens at a pace (`bench/scripted/engine.py`)."""
    command = [sys.executable, "-m", "loraplex.bench.scripted.server", str(DEMO), "--port", "0", *flags]
    return started([*command, f"--engine-options={engine_options}"], log)


@dataclass(frozen=True)
class TinyBundle:
    """A bundle with what it was made from."""

    folder: Path
    checkpoint: Path
    adapters: dict[str, Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A random float32 Llama with adapters of different ranks, one with partial targets and patterns."""
    from loraplex.build.assembly import build_bundle

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = make_checkpoint(folder / "checkpoint", "llama")
    adapters = {
        "small": make_adapter(checkpoint, folder / "small", rank=2, alpha=4, seed=1),
        "middle": make_adapter(checkpoint, folder / "middle", rank=8, alpha=16, seed=2),
        "large": make_adapter(checkpoint, folder / "large", rank=16, alpha=16, use_rslora=True, seed=3),
        "partial": make_adapter(
            checkpoint,
            folder / "partial",
            rank=4,
            alpha=8,
            targets=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"v_proj": 6, "layers.1.mlp.down_proj": 3},
            alpha_pattern={"q_proj": 12},
            seed=4,
        ),
    }
    with quiet():
        build_bundle(checkpoint, adapters, folder / "bundle", name="tiny", precision="float32")
    return TinyBundle(folder / "bundle", checkpoint, adapters)


@pytest.fixture(scope="session")
def tiny_server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tiny.folder, tmp_path_factory.mktemp("log") / "tiny.log") as server:
        yield server


@pytest.fixture(scope="session")
def generator_server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The tiny bundle on the generator lane, whatever the default is."""
    with serving(tiny.folder, tmp_path_factory.mktemp("log") / "generator.log", "--engine", "generator") as server:
        yield server


@pytest.fixture(scope="session")
def batched_server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The tiny bundle on the batched lane."""
    with serving(tiny.folder, tmp_path_factory.mktemp("log") / "batched.log", "--engine", "batched") as server:
        yield server


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Ends the session's use with a check that nothing was logged that should not have been."""
    log = tmp_path_factory.mktemp("log") / "demo.log"
    with serving(DEMO, log) as server:
        yield server
    assert "Traceback" not in log.read_text()


@pytest.fixture
def own_server(tiny: TinyBundle, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of its own for tests that break it."""
    with serving(tiny.folder, tmp_path / "log") as server:
        yield server


@pytest.fixture
def sources(tiny: TinyBundle, tmp_path: Path) -> Path:
    """A folder of adapters to load: those of the tiny bundle."""
    return shutil.copytree(tiny.folder / "adapters", tmp_path / "sources")


@pytest.fixture(scope="module")
def expected(tiny_server: ServerProcess) -> Callable[[str, list[int]], str]:
    """Answers of a server that nobody changes."""
    return lambda model, prompt: ask(tiny_server, model, prompt)
