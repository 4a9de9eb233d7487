"""`loraplex serve OWNER/NAME`, against a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import TOKEN, Hub, running_hub
from tests.server.conftest import DEMO
from tests.server.process import ServerProcess, command, serving


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        running.add("acme/demo", DEMO)
        running.add("acme/private", DEMO, private=True)
        readme = tmp_path_factory.mktemp("other")
        (readme / "README.md").write_text("no bundle")
        running.add("acme/other", readme)
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a server process gets; set in this process too, which starts it."""
    variables = hub.environment(tmp_path / "home")
    for name in os.environ.keys() - variables.keys():
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def refused(name: str, environment: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        command(Path(name)), env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("loraplex: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def answer(server: ServerProcess) -> str:
    messages = [{"role": "user", "content": "What should I see in Paris?"}]
    chat = server.client.chat.completions.create(model="travel", messages=messages, temperature=0)  # type: ignore[arg-type]
    return chat.choices[0].message.content or ""


def test_a_bundle_of_the_hub_is_served_and_then_cached(
    hub: Hub,
    environment: dict[str, str],
    tmp_path: Path,
    demo_server: ServerProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Path("acme/demo"), tmp_path / "first.log") as server:
        assert {model.id for model in server.client.models.list()} == {"plex", "travel", "tone", "json"}
        assert answer(server) == answer(demo_server)
    fetched = [line for line in hub.requests() if line.startswith("GET /acme/demo/resolve/")]
    assert len(fetched) == len([path for path in DEMO.rglob("*") if path.is_file() and path.name != "README.md"])
    weights = list(Path(environment["HF_HOME"]).rglob("model.onnx.data"))
    assert len({path.stat().st_ino for path in weights}) == 1, "the cache and what is served share the space"
    with serving(Path("acme/demo"), tmp_path / "second.log"):
        pass
    assert [line for line in hub.requests() if line.startswith("GET /acme/demo/resolve/")] == fetched
    # And with the hub out of reach.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with serving(Path("acme/demo"), tmp_path / "third.log") as server:
        assert answer(server) == answer(demo_server)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    """An older commit, which still has an adapter that the newest has not."""
    old = hub.add("acme/history", DEMO)
    newest = Path(shutil.copytree(DEMO, tmp_path / "newest"))
    manifest = json.loads((newest / "bundle.json").read_text())
    del manifest["adapters"]["json"]
    (newest / "bundle.json").write_text(json.dumps(manifest))
    hub.add("acme/history", newest)
    with serving(Path(f"acme/history@{old}"), tmp_path / "old.log") as server:
        assert "json" in {model.id for model in server.client.models.list()}
    with serving(Path("acme/history"), tmp_path / "new.log") as server:
        assert "json" not in {model.id for model in server.client.models.list()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme/nothing", "there is none of this name, or it is private"),
        ("acme/private", "there is none of this name, or it is private"),
        ("acme/demo@v9", "it has no revision v9"),
        ("acme/other", "acme/other on the hub is not a bundle: the repository has no bundle.json"),
        ("just-a-name", "just-a-name is not a bundle: it has no bundle.json"),
        ("a/b/c", "a/b/c is not a bundle: it has no bundle.json"),
    ],
)
def test_what_is_no_bundle(environment: dict[str, str], name: str, words: str) -> None:
    assert words in refused(name, environment)


def test_an_unreachable_hub(environment: dict[str, str]) -> None:
    line = refused("acme/demo", environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "the hub cannot be reached, and the cache does not have all of it" in line
    line = refused("acme/demo", environment | {"HF_HUB_OFFLINE": "1"})
    assert "the hub cannot be reached, and the cache does not have all of it" in line


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_private_bundle_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(Path("acme/private"), tmp_path / "private.log") as server:
        assert server.get("/health")[0] == 200


def test_a_folder_wins_over_an_id(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    before = len(hub.requests())
    (tmp_path / "acme" / "demo").mkdir(parents=True)
    line = refused("acme/demo", environment, cwd=tmp_path)
    assert line == "loraplex: acme/demo is not a bundle: it has no bundle.json"
    assert len(hub.requests()) == before
