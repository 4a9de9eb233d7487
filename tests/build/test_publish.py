"""`loraplex publish`, against a hub of our own and Azure's own SDK."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplex.build.model_card import model_card
from loraplex.build.publish import AzureTarget, HubTarget, parse_target
from loraplex.server.bundle import Bundle
from tests.azure import SUBSCRIPTION, Azure, running_azure
from tests.hub import Hub, running_hub

DEMO = Path(__file__).parents[2] / "adapters" / "demo"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The demo bundle without its README.md, and with hidden files that are nobody's business."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "bundle"))
    (folder / "README.md").unlink()
    (folder / ".bundle.lock").touch()
    (folder / "adapters" / ".travel.half-written").mkdir()
    (folder / "adapters" / ".travel.half-written" / "secret").touch()
    return folder


def publish(bundle: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loraplex.server", "publish", str(bundle), *arguments],
        env=environment,
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("loraplex: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publishing_twice(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home", token=True)
    done = publish(bundle, "--to", "hf:acme/first", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "loraplex serve acme/first" in done.stdout
    repository = hub.repository("acme/first")
    assert repository.state["private"] is True
    assert str(repository.state["commit"]) in done.stdout
    there = contents(repository.files)
    card = there.pop("README.md").decode()
    assert there == {name: data for name, data in contents(bundle).items() if "/." not in f"/{name}"}
    Bundle.open(repository.files)
    assert "| `travel` | Names three sights of a city" in card
    assert "loraplex serve acme/first" in card

    # Again, with one adapter less, and a README of its own.
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["adapters"]["json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    shutil.rmtree(bundle / "adapters" / "json")
    (bundle / "README.md").write_text("mine")
    done = publish(bundle, "--to", "hf:acme/first", "--message", "one less", environment=environment)
    assert done.returncode == 0, done.stderr
    there = contents(repository.files)
    assert there["README.md"] == b"mine"
    assert not [name for name in there if name.startswith("adapters/json/")]
    assert (bundle / "README.md").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_public_only_where_it_is_asked_for(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home", token=True)
    assert publish(bundle, "--to", "hf:acme/open", "--public", environment=environment).returncode == 0
    assert hub.repository("acme/open").state["private"] is False
    commit = hub.repository("acme/open").state["commit"]
    line = refusal(publish(bundle, "--to", "hf:acme/open", environment=environment), 1)
    assert line == "loraplex: acme/open exists and is public: give --public to publish there"
    assert hub.repository("acme/open").state["commit"] == commit


@pytest.mark.slow
def test_without_a_token_or_a_hub(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    line = refusal(publish(bundle, "--to", "hf:acme/none", environment=environment), 1)
    assert line == "loraplex: no credentials for acme/none: log in with `hf auth login`, or set HF_TOKEN"
    line = refusal(publish(bundle, "--to", "hf:acme/none", environment=environment | {"HF_TOKEN": "hf_wrong"}), 1)
    assert line.startswith("loraplex: the token may not write to acme/none: ")
    away = environment | {"HF_TOKEN": "hf_any", "HF_ENDPOINT": "http://127.0.0.1:9"}
    line = refusal(publish(bundle, "--to", "hf:acme/none", environment=away), 1)
    assert line.startswith("loraplex: publishing to acme/none failed: ")
    assert not hub.repository("acme/none").folder.exists()


def test_a_broken_bundle_is_not_published(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home", token=True)
    file = bundle / "adapters" / "tone" / "tone.onnx_adapter"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    line = refusal(publish(bundle, "--to", "hf:acme/broken", environment=environment), 2)
    assert "tone.onnx_adapter is damaged or was replaced" in line
    (bundle / "bundle.json").unlink()
    assert "is not a bundle" in refusal(publish(bundle, "--to", "hf:acme/broken", environment=environment), 2)
    assert not hub.repository("acme/broken").folder.exists()


def test_targets() -> None:
    assert parse_target("hf:acme/demo") == HubTarget("acme/demo")
    assert parse_target("azureml:plex") == AzureTarget("plex", None)
    assert parse_target("azureml:plex:3") == AzureTarget("plex", "3")
    for wrong in ("acme/demo", "hf:demo", "hf:a/b/c", "hf:../b", "azureml:", "azureml:a:b:c", "s3:bucket"):
        with pytest.raises(ValueError, match="give hf:OWNER/NAME or azureml"):
            parse_target(wrong)


def test_bad_arguments(bundle: Path) -> None:
    environment = dict(os.environ)
    assert "give hf:OWNER/NAME" in refusal(publish(bundle, "--to", "nowhere", environment=environment), 2)
    line = refusal(publish(bundle, "--to", "azureml:x", "--tag", "alone", environment=environment), 2)
    assert line == "loraplex: --tag alone is not KEY=VALUE"


def test_the_card_cannot_be_broken_by_an_adapter(bundle: Path) -> None:
    path = bundle / "adapters" / "tone" / "adapter.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"description": "a | b\n\n# not a heading"}))
    card = model_card(Bundle.open(bundle), "acme/demo")
    assert "| `tone` | a \\| b # not a heading | 4 |" in card
    assert "\n# not a heading" not in card
    assert card.startswith("---\ntags:\n- loraplex\n")


def test_without_azures_packages(bundle: Path) -> None:
    """As if nothing of Azure were installed, whatever is."""
    code = (
        "import sys; sys.modules['azure'] = sys.modules['azure.ai'] = sys.modules['azure.ai.ml'] = None\n"
        "from loraplex.server.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "publish", str(bundle), "--to", "azureml:plex"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert refusal(done, 1).endswith("install loraplex[publish-azure]")


@pytest.fixture
def azure() -> Iterator[Azure]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("azure.ai.ml", reason="needs loraplex[publish-azure]")
    with running_azure() as running:
        yield running


PLACE = ("--subscription", SUBSCRIPTION, "--resource-group", "group", "--workspace", "w")


@pytest.mark.slow
def test_publishing_to_azure(azure: Azure, bundle: Path) -> None:
    """With Azure's own packages, through the hosts that they ask."""
    given = ("--tag", "team=travel", "--description", "Ours.")
    done = publish(bundle, "--to", "azureml:plex:3", *PLACE, *given, environment=azure.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "azureml:plex:3\n"
    model = azure.models["plex/3"]["properties"]
    assert (model["modelType"], model["description"]) == ("custom_model", "Ours.")
    tags = model["tags"]
    assert (tags["team"], tags["loraplex.base"], tags["loraplex.adapters"]) == ("travel", "plex", "travel,tone,json")
    _, _, folder = model["modelUri"].partition("/datastores/workspaceblobstore/paths/")
    there = {
        name.removeprefix(f"container/{folder}/"): content
        for name, content in azure.blobs.items()
        if name.startswith(f"container/{folder}/")
    }
    assert len(there) == len(azure.blobs)
    assert "loraplex serve FOLDER" in there.pop("README.md").decode()
    assert there == {name: data for name, data in contents(bundle).items() if "/." not in f"/{name}"}
    # The service counts on.
    done = publish(bundle, "--to", "azureml:plex", *PLACE, environment=azure.environment())
    assert (done.returncode, done.stdout) == (0, "azureml:plex:2\n"), done.stderr


@pytest.mark.slow
def test_azure_refuses(azure: Azure, bundle: Path) -> None:
    def told(environment: dict[str, str], *place: str) -> str:
        return refusal(publish(bundle, "--to", "azureml:plex:3", *place, environment=environment), 1)

    nobody = azure.environment(secret=None) | {"PATH": str(bundle)}  # no az, no azd, no pwsh
    no_credentials = "loraplex: no credentials for Azure: log in with `az login`, or set AZURE_CLIENT_ID, "
    assert told(nobody, *PLACE).startswith(no_credentials)
    wrong = "loraplex: logging in to Azure failed (EnvironmentCredential): AADSTS7000215: Invalid client secret."
    assert told(azure.environment(secret="wrong"), *PLACE) == wrong
    azure.forbidden = True
    refused = "loraplex: Azure ML refused plex: (AuthorizationFailed) You may not write models."
    assert told(azure.environment(), *PLACE) == refused
    elsewhere = ("--subscription", SUBSCRIPTION, "--resource-group", "another", "--workspace", "w")
    assert "Azure ML refused plex: (ResourceNotFound)" in told(azure.environment(), *elsewhere)
    away = azure.environment() | {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    assert told(away, *PLACE).startswith("loraplex: logging in to Azure failed (EnvironmentCredential): ")
    assert "needs all of --subscription, --resource-group and --workspace" in told(nobody, "--workspace", "w")
    which = "loraplex: which Azure ML workspace? give --subscription"
    assert told(nobody).startswith(which)
    (bundle.parent / "config.json").write_text("not JSON")
    assert told(nobody).startswith(which)
    assert not azure.models
