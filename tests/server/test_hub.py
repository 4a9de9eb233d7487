"""`loraplex serve OWNER/NAME`, against a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from loraplex.server.hub_downloads import AT_ONCE
from tests.hub import TOKEN, Hub, running_hub
from tests.server.calls import ask, call, upload
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import PATIENCE, ServerProcess, children, command, serving, wait_until
from tests.server.test_connections import connect

pytestmark = pytest.mark.timeout(400)  # huggingface_hub alone takes a second to import, in process after process


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
    parts = (DEMO / "bundle.json", *(DEMO / "base").rglob("*"), *(DEMO / "adapters").rglob("*"))
    assert len(fetched) == len([path for path in parts if path.is_file()])
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


@pytest.mark.usefixtures("environment")
def test_an_adapter_of_the_hub_is_loaded_by_its_id(hub: Hub, tiny: TinyBundle, tmp_path: Path) -> None:
    peft = hub.add("acme/small-lora", tiny.adapters["small"])
    hub.add("acme/ours", tiny.folder / "adapters" / "large")
    state = tmp_path / "state"
    flags = ("--dev", "--allow-hub", "--state-dir", str(state))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        right = {name: ask(server, name, [10, 50, 7]) for name in ("small", "large")}
        status, card = call(server, "PUT", "/v1/adapters/new", {"hub": "acme/small-lora"})
        assert (status, card["state"], card["source"]) == (201, "ready", f"acme/small-lora@{peft}")
        assert ask(server, "new", [10, 50, 7]) == right["small"]
        wanted = {"lora_name": "new", "lora_path": "acme/ours", "load_inplace": True}
        assert call(server, "POST", "/v1/load_lora_adapter", wanted)[0] == 200
        assert ask(server, "new", [10, 50, 7]) == right["large"]
        status, card = call(server, "PUT", "/v1/adapters/new", {"hub": f"acme/small-lora@{peft}"})
        assert (status, card["source"]) == (200, f"acme/small-lora@{peft}")
    assert len(list(state.iterdir())) == 2  # the index, and what is loaded
    with serving(tiny.folder, tmp_path / "again.log", "--dev", "--state-dir", str(state)) as server:
        assert ask(server, "new", [10, 50, 7]) == right["small"]
        status, error = call(server, "PUT", "/v1/adapters/new", {"hub": "acme/ours"})
        assert (status, error["error"]["code"]) == (403, "forbidden")


def downloads(server: ServerProcess) -> list[psutil.Process]:
    return children(server.process.pid, "loraplex.server.hub_adapter")


@pytest.mark.usefixtures("environment")
def test_downloads_that_do_not_end_hold_up_nothing_else(hub: Hub, tiny: TinyBundle, tmp_path: Path) -> None:
    hub.add("acme/small-lora", tiny.adapters["small"])
    state, names = tmp_path / "state", [f"n{index}" for index in range(12)]
    flags = ("--dev", "--allow-hub", "--state-dir", str(state))
    with serving(tiny.folder, tmp_path / "log", *flags) as server, ThreadPoolExecutor(len(names)) as pool:
        with hub.stalled():
            asked = [
                pool.submit(call, server, "PUT", f"/v1/adapters/{name}", {"hub": "acme/small-lora"}) for name in names
            ]
            wait_until(lambda: len(downloads(server)) == AT_ONCE)
            for name in ("first", "second"):  # which takes files, a conversion and the engine
                assert upload(server, name, *tiny.adapters["large"].glob("adapter_*"))[0] == 201
                assert ask(server, name, [10, 50, 7]) == ask(server, "large", [10, 50, 7])
            assert len(downloads(server)) == AT_ONCE
        assert {each.result(60)[0] for each in asked} == {201}
        assert ask(server, names[-1], [10, 50, 7]) == ask(server, "small", [10, 50, 7])
        assert downloads(server) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("environment")
def test_a_download_ends_with_the_client_and_with_the_server(hub: Hub, tiny: TinyBundle, tmp_path: Path) -> None:
    hub.add("acme/small-lora", tiny.adapters["small"])
    state, body = tmp_path / "state", json.dumps({"hub": "acme/small-lora"}).encode()
    head = b"PUT /v1/adapters/new HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    flags = ("--dev", "--allow-hub", "--state-dir", str(state), "--drain-timeout", "1")
    with hub.stalled(), serving(tiny.folder, tmp_path / "log", *flags) as server:
        with connect(server) as leaving:
            leaving.sendall(head + body)
            wait_until(lambda: bool(downloads(server)))
            assert len(list(state.iterdir())) == 2
        wait_until(lambda: not downloads(server) and [each.name for each in state.iterdir()] == ["adapters.json"])
        server.wait_for_line(" 499 ")
        with connect(server) as staying:
            staying.sendall(head + body)
            wait_until(lambda: bool(downloads(server)))
            (download,) = downloads(server)
            assert server.stop() == 0
        assert psutil.wait_procs([download], timeout=PATIENCE)[1] == []
        assert [each.name for each in state.iterdir()] == ["adapters.json"]
    with hub.stalled(), serving(tiny.folder, tmp_path / "again.log", *flags) as server, connect(server) as killed:
        killed.sendall(head + body)
        wait_until(lambda: bool(downloads(server)))
        (download,) = downloads(server)
        server.process.kill()
        assert psutil.wait_procs([download], timeout=PATIENCE)[1] == []


@pytest.mark.usefixtures("environment")
def test_a_name_that_leads_elsewhere_fetches_and_deletes_nothing(hub: Hub, tiny: TinyBundle, tmp_path: Path) -> None:
    hub.add("acme/small-lora", tiny.adapters["small"])
    state = tmp_path / "home" / "state"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("x")
    before = len(hub.requests())
    with serving(tiny.folder, tmp_path / "log", "--dev", "--allow-hub", "--state-dir", str(state)) as server:
        for name in ("../../fetched", "..", "a/b", "tiny"):
            wanted = {"lora_name": name, "lora_path": "acme/small-lora"}
            status, error = call(server, "POST", "/v1/load_lora_adapter", wanted)
            assert (status, error["error"]["code"]) == (400, "invalid_value")
    assert len(hub.requests()) == before
    assert {each.name for each in (tmp_path / "home").iterdir()} == {"precious", "state"}
    assert [path.name for path in state.iterdir()] == ["adapters.json"]


@pytest.mark.usefixtures("environment")
def test_what_cannot_be_had_from_the_hub_changes_nothing(
    hub: Hub, tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("acme/hidden", tiny.adapters["small"], private=True)
    hub.add("acme/pickle", _with(tmp_path / "pickle", "adapter_model.bin", b"cos\nsystem\n(S'true'\ntR."))
    hub.add("acme/huge", _with(tmp_path / "huge", "adapter_model.safetensors", bytes(3_000_000)))
    state = tmp_path / "state"
    flags = ("--dev", "--allow-hub", "--state-dir", str(state), "--max-adapter-bytes", "2000000")
    cases = {
        "acme/none": (404, "model_not_found", "none of this name"),
        "acme/hidden": (404, "model_not_found", "private"),
        "acme/huge@nowhere": (404, "model_not_found", "no revision nowhere"),
        "acme/other": (422, "adapter_invalid", "is not an adapter"),
        "acme/pickle": (422, "adapter_invalid", "adapter_model.safetensors"),
        "acme/huge": (422, "adapter_invalid", "this server takes 2000000 at most"),
        "../etc": (400, "invalid_value", "OWNER/NAME"),
        "": (400, "invalid_value", "OWNER/NAME"),
    }
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        for given, (status, code, reason) in cases.items():
            found, error = call(server, "PUT", "/v1/adapters/new", {"hub": given})
            assert (found, error["error"]["code"]) == (status, code), error
            assert reason in error["error"]["message"]
        assert call(server, "PUT", "/v1/adapters/new", {"hub": "acme/huge", "path": "small"})[0] == 400
        assert call(server, "PUT", "/v1/adapters/new", {})[0] == 400
        assert [path.name for path in state.iterdir()] == ["adapters.json"]
        assert not [line for line in hub.requests() if "pickle" in line and ".bin" in line]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with serving(tiny.folder, tmp_path / "far.log", *flags) as server:
        found, error = call(server, "PUT", "/v1/adapters/new", {"hub": "acme/small-lora"})
        assert (found, error["error"]["code"]) == (502, "hub_failed")
        assert ask(server, "small", [10, 50, 7])


def _with(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    (folder / name).write_bytes(content)
    return folder
