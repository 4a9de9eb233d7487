"""Pinned adapters keep their places in the routed engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplex.server.engine.residency import choose
from loraplex.server.engine.slots import Adapter, Slots
from tests.server.calls import ask, call, upload
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving, wait_until

ADAPTERS = [Adapter(name, Path(name), "0" * 64, {}) for name in "abcd"]


def test_a_pinned_adapter_keeps_its_slot() -> None:
    a, b, c, d = ADAPTERS
    slots, used = Slots(2, 1000), {a: 1, b: 2, c: 3, d: 4}
    slots.pinned = {a}
    assert slots.take(a, (), used)
    assert slots.take(b, (), used)
    assert slots.take(c, (), used)  # though b was used after a
    assert slots.adapters == [a, c]
    assert slots.take(d, {c}, used) is None  # c is busy
    slots.promise(1)
    assert slots.leaving == {c}  # though a has nothing to do
    slots.pinned = set()
    assert slots.take(d, {c}, used)
    assert slots.adapters == [c, d]


def test_pinned_adapters_do_not_keep_every_slot() -> None:
    a, b, c, _ = ADAPTERS
    slots, used = Slots(2, 1000), {a: 1, b: 2, c: 3}
    slots.pinned = {a, b}
    assert slots.take(a, (), used)
    assert slots.take(b, (), used)
    slots.promise(1)
    assert slots.leaving == {a}
    assert slots.take(c, {a}, used)
    assert slots.adapters == [a, c]
    slots.promise(1)
    assert slots.leaving == {c}


def test_a_pinned_adapter_stays_linked() -> None:
    known = {"a": 1, "b": 2, "c": 3, "d": 4}
    assert choose(known, ["a", "b"], ["c", "d"], 2) == ("c", "d")
    assert choose(known, ["a", "b"], ["c", "d"], 2, {"a"}) == ("a", "c")
    assert choose(known, ["a", "b"], ["d"], 2, {"a", "c"}) == ("a", "d")  # c is not linked yet
    assert choose(known, ["a", "b"], ["d"], 2, {"a", "b"}) == ("a", "d")  # one place is for the others


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("pinned") / "log"
    with serving(tiny.folder, log, "--dev", "--engine", "routed", "--max-linked", "2") as found:
        yield found
    assert "Traceback" not in log.read_text()


def test_all_but_one_place_may_be_pinned(server: ServerProcess, tiny_server: ServerProcess) -> None:
    def pin(name: str, pinned: bool = True) -> tuple[int, str]:
        status, body = call(server, "PATCH", f"/v1/adapters/{name}", {"pinned": pinned})
        return status, str(body["options"] if status == 200 else body["error"]["message"])

    assert pin("small")[0] == 200
    assert call(server, "GET", "/v1/adapters/small")[1]["options"]["pinned"] is True
    status, reason = pin("large")
    assert status == 400
    assert "1 adapters are, of 2" in reason
    prompts = [[seed, 50, 7] for seed in range(10, 16)]
    for prompt in prompts:  # every one finds a place, beside the one that keeps its own
        for name in ("small", "large", "middle", "partial"):
            assert ask(server, name, prompt, 6) == ask(tiny_server, name, prompt, 6)
    server.engine().kill()
    assert ask(server, "small", prompts[0], 6) == ask(tiny_server, "small", prompts[0], 6)
    assert pin("small", pinned=False)[0] == 200
    assert pin("large")[0] == 200


def test_a_pinned_adapter_stays_when_its_folder_disappears(tiny: TinyBundle, tmp_path: Path) -> None:
    folder, log = tmp_path / "watched", tmp_path / "log"
    for name in ("kept", "left"):
        shutil.copytree(tiny.folder / "adapters" / "small", folder / name)
    with serving(tiny.folder, log, "--dev", "--adapter-dir", str(folder)) as server:
        assert call(server, "PATCH", "/v1/adapters/kept", {"pinned": True})[0] == 200
        for name in ("kept", "left"):
            shutil.rmtree(folder / name)
        wait_until(lambda: "left" not in {model.id for model in server.client.models.list()})
        server.wait_for_line("kept is no longer in")
        assert ask(server, "kept", [10, 50, 7]) == ask(server, "small", [10, 50, 7])
        assert call(server, "PATCH", "/v1/adapters/kept", {"pinned": False})[0] == 200
        wait_until(lambda: "kept" not in {model.id for model in server.client.models.list()})
        assert log.read_text().count("kept is no longer in") == 1


def test_there_is_no_room_for_more_adapters_than_the_graph_tells_apart(tiny: TinyBundle, tmp_path: Path) -> None:
    """Whatever --max-linked says: a slot is one dimension of a key in the routing layer's cache."""
    decoder = json.loads((tiny.folder / "base" / "generator" / "genai_config.json").read_text())["model"]["decoder"]
    places = decoder["num_key_value_heads"] * decoder["head_size"]
    flags = ("--dev", "--engine", "routed", "--max-linked", "2000", "--adapter-dir", str(tiny.folder / "adapters"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        assert f'max_lora="{places}"' in server.get("/metrics")[1]
        for index in range(places):
            assert call(server, "PUT", f"/v1/adapters/a{index}", {"path": "small"})[0] == 201
            status, body = call(server, "PATCH", f"/v1/adapters/a{index}", {"pinned": True})
            if index < places - 1:
                assert status == 200
        assert status == 400
        assert f"{places - 1} adapters are, of {places} that" in body["error"]["message"]
        assert ask(server, f"a{places - 1}", [10, 50, 7]) == ask(server, "small", [10, 50, 7])
        assert ask(server, "large", [10, 50, 7])
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_pinned_adapter_is_replaced_while_it_is_in_use(
    server: ServerProcess, tiny: TinyBundle, tiny_server: ServerProcess
) -> None:
    """The old one holds its place only for the requests that it has."""
    prompt = [10, 50, 7]
    for name in ("large", "small"):
        assert call(server, "PATCH", f"/v1/adapters/{name}", {"pinned": name == "small"})[0] == 200
    stream = server.client.completions.create(
        model="small", prompt=prompt, temperature=0, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    first = next(iter(stream)).choices[0].text
    assert upload(server, "small", *tiny.adapters["large"].glob("adapter_*"))[0] == 200
    for name, right in (("middle", "middle"), ("small", "large"), ("partial", "partial"), ("large", "large")):
        assert ask(server, name, prompt) == ask(tiny_server, right, prompt)
    whole = tiny_server.client.completions.create(
        model="small", prompt=prompt, temperature=0, max_tokens=200, extra_body={"ignore_eos": True}
    )
    assert first + "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    wait_until(lambda: len(call(server, "GET", "/v1/adapters")[1]["data"]) == len(tiny.adapters))
    # As many as before may be pinned.
    assert call(server, "PATCH", "/v1/adapters/large", {"pinned": True})[0] == 400
    assert call(server, "PATCH", "/v1/adapters/small", {"pinned": False})[0] == 200
    assert call(server, "PATCH", "/v1/adapters/large", {"pinned": True})[0] == 200
