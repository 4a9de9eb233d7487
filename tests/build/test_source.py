"""Bases and rows that lie in Azure ML, and what is said where nobody is logged in."""

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
from tests.azure import running_azure

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


class Refusing(Datastore):
    """Raises what azureml-fsspec 1.4 does where nobody is logged in."""

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        raise Exception(
            'StreamError(PermissionDenied(Some(AuthenticationError("ClientAuthenticationError: DefaultAzureCredential '
            "failed to retrieve a token.\\nAttempted credentials:\\n\\tEnvironmentCredential: "
            + ("Authentication failed: AADSTS7000215.\\n" if "secret" in path else "unavailable\\n")
            + '\\tAzureCliCredential: Azure CLI not found on path"))))'
        )


def test_a_datastore_that_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "azureml", Refusing)
    problems = Problems(tmp_path / "recipe.yaml")
    for url in (ROWS, f"{ROWS}.secret"):
        assert load_rows(url, tmp_path, ("adapters", url[-4:], "data"), problems) is None
    wrong, nobody = sorted(problems.messages())
    assert f"{ROWS} cannot be read: no credentials for Azure: log in with `az login`" in nobody
    assert wrong.endswith("cannot be read: logging in to Azure failed (EnvironmentCredential): AADSTS7000215.")


def test_a_base_of_a_registry_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_remote(BASE, tmp_path)
    for module in ("azure.ai.ml", "azure.ai", "azure.identity"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointUnsupported) as told:
        fetch(BASE, tmp_path, tmp_path / "work")
    assert told.value.message.startswith(f"{BASE} cannot be downloaded: ")
    assert told.value.message.endswith(": install loraplex[publish-azure]")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_base_of_a_registry(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Azure's own packages, through the hosts that they ask."""
    pytest.importorskip("azure.ai.ml", reason="needs loraplex[publish-azure]")
    base = "azureml://registries/acme/models/phi/versions/6"
    with running_azure() as azure:
        for name, value in azure.environment(secret=None).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", str(tmp_path))  # no az, no azd, no pwsh
        with pytest.raises(CheckpointUnsupported, match="cannot be downloaded: no credentials for Azure: log in"):
            fetch(base, tmp_path, tmp_path / "work")
        for name, value in azure.environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CheckpointUnsupported, match="Azure ML refused phi:6 of the registry acme: "):
            fetch(base, tmp_path, tmp_path / "work")
        azure.add("phi", "6", checkpoint)
        found = fetch(base, tmp_path, tmp_path / "work")
        asked = len(azure.requests)
        assert fetch(base, tmp_path, tmp_path / "work") == found
        assert len(azure.requests) == asked
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        file.name: file.read_bytes() for file in checkpoint.iterdir()
    }
