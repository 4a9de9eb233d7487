"""Servers under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.scripted_server import Scripted, scripted_server
from tests.server.process import ServerProcess, serving

DEMO = Path(__file__).parents[2] / "adapters" / "demo"


def saving(folder: Path) -> tuple[str | Path, ...]:
    """Flags that have a run saved as run.json."""
    return ("--save-result", "--result-dir", folder, "--result-filename", "run.json")


def custom(scripted: Scripted, questions: Path, *, prompts: int = 12, tokens: int = 4) -> list[str | Path]:
    flags: list[str | Path] = ["--base-url", scripted.url, "--dataset-name", "custom", "--dataset-path", questions]
    return ["bench", "serve", *flags, "--num-prompts", str(prompts), "--custom-output-len", str(tokens)]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A dataset of forty prompts."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {index}"}) + "\n" for index in range(40)))
    return path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Our server with the demo bundle, whose adapters may be unloaded and loaded again."""
    flags = ("--dev", "--adapter-dir", str(DEMO / "adapters"))
    with serving(DEMO, tmp_path_factory.mktemp("log") / "demo.log", *flags) as server:
        yield server
