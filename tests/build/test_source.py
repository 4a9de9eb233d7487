"""Bases and rows that lie in Azure ML, as far as that can be tried without an account."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from loraplex.build.data import load_rows
from loraplex.build.document import Problems
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.source import fetch, is_remote

BASE = "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/6"
ROWS = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/rows.jsonl"


class Datastore(MemoryFileSystem):  # type: ignore[misc]
    """In the place of azureml-fsspec's, which needs an account."""

    protocol = "azureml"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("azureml://").strip("/")


@pytest.fixture
def datastore(monkeypatch: pytest.MonkeyPatch) -> Datastore:
    # Its public way to register one has none to take it back.
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "azureml", Datastore)
    return Datastore()


def test_rows_of_a_datastore(datastore: Datastore, tmp_path: Path) -> None:
    datastore.pipe(ROWS, b'{"prompt": "a", "response": "b"}\n')
    problems = Problems(tmp_path / "recipe.yaml")
    rows = load_rows(ROWS, tmp_path, ("adapters", "a", "data"), problems, text_template="{prompt} {response}")
    assert rows is not None
    assert rows.texts() == ["a b"]
    datastore.pipe(ROWS, json.dumps({"prompt": "a"}).encode() + b"\n{")
    assert load_rows(ROWS, tmp_path, ("adapters", "a", "data"), problems, text_template="{prompt}") is None
    assert load_rows(f"{ROWS}.gone", tmp_path, ("adapters", "b", "data"), problems) is None
    gone, bad = sorted(problems.messages())
    assert bad == (f"{ROWS}:2: is not JSON: Expecting property name enclosed in double quotes")
    assert gone.endswith(f"adapters.b.data: there is no file {ROWS}.gone")


def test_a_base_of_a_registry_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_remote(BASE, tmp_path)
    for module in ("azure.ai.ml", "azure.ai", "azure.identity"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointUnsupported) as told:
        fetch(BASE, tmp_path, tmp_path / "work")
    assert told.value.message.startswith(f"{BASE}: ")
    assert told.value.message.endswith("pip install 'olive-ai[azureml]'")


@pytest.mark.filterwarnings("ignore")
def test_a_base_of_a_registry_needs_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.ai.ml")
    pytest.importorskip("azure.identity")
    monkeypatch.setenv("PATH", str(tmp_path))  # no az, no azd, no pwsh
    with pytest.raises(CheckpointUnsupported) as told:
        fetch(BASE, tmp_path, tmp_path / "work")
    assert told.value.message.startswith(f"{BASE} cannot be downloaded: ")
