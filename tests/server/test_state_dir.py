"""What was loaded and set while a server ran is there after a restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.calls import PROMPTS, ask, call
from tests.server.conftest import TinyBundle
from tests.server.process import serving


def test_options_of_an_adapter_are_set_and_survive(
    tiny: TinyBundle, tmp_path: Path, expected: Callable[[str, list[int]], str]
) -> None:
    flags = ("--dev", "--state-dir", str(tmp_path / "state"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        change = {"aliases": ["petit", "klein"], "sampling": {"max_tokens": 3}, "max_running": 1, "priority": "low"}
        status, card = call(server, "PATCH", "/v1/adapters/small", change)
        assert (status, card["options"]) == (200, change)
        assert call(server, "PATCH", "/v1/adapters/small", {"description": "small and slow"})[0] == 200
        for body, param in (
            ({"aliases": ["large"]}, "aliases"),
            ({"aliases": ["a b"]}, "aliases[0]"),
            ({"priority": "highest"}, "priority"),
            ({"max_running": 0}, "max_running"),
            ({"sampling": {"temperature": 9}}, "sampling.temperature"),
        ):
            status, refusal = call(server, "PATCH", "/v1/adapters/small", body)
            assert (status, refusal["error"]["param"]) == (400, param)
        assert call(server, "PATCH", "/v1/adapters/large", {"aliases": ["klein"]})[0] == 400
        assert call(server, "PATCH", "/v1/adapters/none", {"aliases": []})[0] == 404
        assert call(server, "PATCH", "/v1/adapters/large", {"aliases": ["a", "a"]})[0] == 400
        with ThreadPoolExecutor(8) as pool:  # at once: one of them gets it
            names = ["middle", "large"] * 4
            asked = [pool.submit(call, server, "PATCH", f"/v1/adapters/{name}", {"aliases": ["x"]}) for name in names]
            statuses = {
                name: {each.result()[0] for each, to in zip(asked, names, strict=True) if to == name} for name in names
            }
        assert sorted(statuses.values(), key=min) == [{200}, {400}]
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        assert ask(server, "petit", PROMPTS[7]) == expected("small", PROMPTS[7])
        answer = server.client.completions.create(model="klein", prompt=PROMPTS[7], temperature=0)
        assert (answer.model, answer.usage.completion_tokens if answer.usage else 0) == ("small", 3)
        described = {model.id: model.model_dump()["description"] for model in server.client.models.list()}
        assert described["small"] == described["petit"] == "small and slow"


def test_what_was_loaded_is_there_after_a_restart(
    tiny: TinyBundle, sources: Path, tmp_path: Path, expected: Callable[[str, list[int]], str]
) -> None:
    flags = ("--dev", "--adapter-dir", str(sources), "--state-dir", str(tmp_path / "state"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        for name, path in (("new", "large"), ("gone", "small"), ("small", "middle")):
            assert call(server, "PUT", f"/v1/adapters/{name}", {"path": path})[0] in (200, 201)
        call(server, "DELETE", "/v1/adapters/gone")
        server.process.kill()
        server.process.wait()
    (tmp_path / "state" / "half-copied").mkdir()
    shutil.rmtree(sources)
    with serving(tiny.folder, tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        names = [model.id for model in server.client.models.list()]
        assert sorted(names) == ["large", "middle", "new", "partial", "small", "tiny"]
        assert ask(server, "new", PROMPTS[3]) == expected("large", PROMPTS[3])
        assert ask(server, "small", PROMPTS[3]) == expected("middle", PROMPTS[3])
    assert not (tmp_path / "state" / "half-copied").exists()
    assert len(list((tmp_path / "state").iterdir())) == 3


def test_a_state_dir_of_something_else_is_left_alone(tiny: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(AssertionError, match=r"is not empty and has no adapters\.json"),
        serving(tiny.folder, tmp_path.parent / "state.log", "--state-dir", str(tmp_path)),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
