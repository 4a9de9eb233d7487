"""API keys: who gets in, what a key opens, who may manage adapters."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from loraplex.server.keys import Key, Keys, digest, entry, new_key
from tests.server.calls import call
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, command, serving

ADMIN, ALL, SMALL = (new_key() for _ in range(3))


def write(path: Path, *keys: Key) -> None:
    path.write_text("\n\n".join(map(entry, keys)))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    write(
        path,
        Key("ops", digest(ADMIN), admin=True),
        Key("all", digest(ALL)),
        Key("small", digest(SMALL), adapters=frozenset({"small"})),
    )
    return path


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, keys: Path) -> Iterator[ServerProcess]:
    with serving(tiny.folder, keys.with_suffix(".log"), "--keys", str(keys)) as found:
        yield found


def ask(server: ServerProcess, key: str, model: str) -> str:
    client = server.client.with_options(api_key=key)
    return client.completions.create(model=model, prompt=[10], max_tokens=2, temperature=0).choices[0].text


def test_without_a_known_key_there_is_no_answer(server: ServerProcess) -> None:
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key") as refusal:
        ask(server, "wrong", "small")
    assert refusal.value.code == "invalid_api_key"
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/small"), ("GET", "/v1/adapters")):
        status, body = call(server, method, path)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert call(server, "POST", "/v1/chat/completions", {"model": "small"})[0] == 401
    assert call(server, "GET", "/health")[0] == 200


def test_a_key_opens_its_adapters_and_no_others(server: ServerProcess) -> None:
    assert ask(server, ALL, "small") == ask(server, SMALL, "small")
    refusals = []
    for model in ("large", "no-such-thing", "tiny"):
        with pytest.raises(openai.NotFoundError) as refusal:
            ask(server, SMALL, model)
        refusals.append(refusal.value.message.replace(model, "it"))
    assert len(set(refusals)) == 1
    assert [model.id for model in server.client.with_options(api_key=SMALL).models.list()] == ["small"]
    assert len(list(server.client.with_options(api_key=ALL).models.list())) == 5


def test_only_an_admin_manages_adapters(server: ServerProcess) -> None:
    requests = [
        ("GET", "/v1/adapters", None),
        ("GET", "/v1/adapters/small", None),
        ("PUT", "/v1/adapters/small", {"path": "x"}),
        ("DELETE", "/v1/adapters/small", None),
        ("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "small"}),
    ]
    for method, path, body in requests:
        assert call(server, method, path, body, ALL)[0] == 403
    assert call(server, "GET", "/v1/adapters", key=ADMIN)[0] == 200
    status, body = call(server, "PUT", "/v1/adapters/new", {"path": "x"}, ADMIN)
    assert status == 403
    assert "--adapter-dir" in body["error"]["message"]


def test_without_keys_only_a_developer_on_loopback_manages_adapters(tiny_server: ServerProcess) -> None:
    status, body = call(tiny_server, "DELETE", "/v1/adapters/small")
    assert status == 403
    assert "--keys" in body["error"]["message"]
    assert call(tiny_server, "POST", "/v1/unload_lora_adapter", {"lora_name": "small"})[0] == 403


def test_dev_on_an_open_address_is_refused_at_start(tiny: TinyBundle) -> None:
    flags = ("--dev", "--host", "0.0.0.0")
    result = subprocess.run(command(tiny.folder, *flags), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--dev" in result.stderr


def test_keys_are_read_again_when_the_file_changes(tiny: TinyBundle, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, Key("all", digest(ALL)))
    log = tmp_path / "log"
    with serving(tiny.folder, log, "--keys", str(path)) as server:
        ask(server, ALL, "small")
        write(path, Key("new", digest(SMALL)))
        ask(server, SMALL, "small")
        with pytest.raises(openai.AuthenticationError):
            ask(server, ALL, "small")
        path.write_text("[[key]]\nname = ")
        ask(server, SMALL, "small")
        assert "the keys stay as they were" in log.read_text()
        path.unlink()
        for _ in range(3):
            ask(server, SMALL, "small")
        time.sleep(0.1)
        assert log.read_text().count("cannot be read") == 1
        write(path, Key("all", digest(ALL)))
        ask(server, ALL, "small")
    assert ALL not in log.read_text()
    assert SMALL not in log.read_text()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no [[key]]"),
        ("[[key]]\nname = 'x'\n", "missing required field `sha256`"),
        ("[[key]]\nname = 'x'\nsha256 = 'lpx-abc'\n", "matching regex"),
        ("[[key]]\nname = 'x'\nsha256 = '" + "0" * 64 + "'\nadmin = 'yes'\n", "admin"),
        ("not toml", "keys.toml"),
    ],
)
def test_a_keys_file_that_is_wrong_is_refused_at_start(
    tiny: TinyBundle, tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    flags = ("--keys", str(path))
    result = subprocess.run(command(tiny.folder, *flags), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert problem in result.stderr


def test_the_command_makes_a_key_that_works(tiny: TinyBundle, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "loraplex.server", "key", "customer 7", "--adapter", "small"]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    made, _, lines = output.split("\n\n")
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    with serving(tiny.folder, tmp_path / "log", "--keys", str(path)) as server:
        ask(server, made, "small")
        with pytest.raises(openai.NotFoundError):
            ask(server, made, "large")


def test_the_command_writes_every_field(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "loraplex.server", "key", 'o"ps\n', "--admin", "--class", "gold"]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    made, _, lines = output.split("\n\n")
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    found = Keys(path).authenticate(f"Bearer {made}")
    assert (found.name, found.admin, found.service_class) == ('o"ps\n', True, "gold")


@pytest.mark.parametrize("flags", [("--adapter", "../x"), ("--class", "a b"), ("--adapter", "")])
def test_the_command_makes_no_key_that_a_server_refuses(flags: tuple[str, ...]) -> None:
    arguments = [sys.executable, "-m", "loraplex.server", "key", "customer", *flags]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("loraplex: no server would take this key")
