"""Adapters come, go and change on a running server."""

from __future__ import annotations

import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.calls import PROMPTS, ask, call, upload
from tests.server.conftest import TinyBundle
from tests.server.process import PATIENCE, ServerProcess, serving


@pytest.fixture(params=["batched", "generator", "routed"])
def server(request: pytest.FixtureRequest, tiny: TinyBundle, sources: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = ("--dev", "--adapter-dir", str(sources), "--engine", request.param)
    log = tmp_path / "log"
    with serving(tiny.folder, log, *flags) as found:
        yield found
    assert "Traceback" not in log.read_text()


def test_an_adapter_is_added_replaced_and_removed(
    server: ServerProcess, expected: Callable[[str, list[int]], str]
) -> None:
    prompt = PROMPTS[0]
    status, card = call(server, "PUT", "/v1/adapters/new", {"path": "small"})
    assert (status, card["state"], card["in_use"]) == (201, "ready", 0)
    assert set(card["ranks"].values()) == {2}
    assert "new" in [model.id for model in server.client.models.list()]
    assert ask(server, "new", prompt) == expected("small", prompt)
    assert call(server, "PUT", "/v1/adapters/new", {"path": "large"})[0] == 200
    assert ask(server, "new", prompt) == expected("large", prompt)
    assert ask(server, "small", prompt) == expected("small", prompt)
    assert call(server, "DELETE", "/v1/adapters/new")[0] == 200
    assert "new" not in [model.id for model in server.client.models.list()]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask(server, "new", prompt)
    assert call(server, "GET", "/v1/adapters/new")[0] == 404


def test_adapters_change_while_requests_run(server: ServerProcess, expected: Callable[[str, list[int]], str]) -> None:
    answers = {(name, i): expected(name, PROMPTS[i]) for name in ("small", "large", "middle") for i in range(24)}
    call(server, "PUT", "/v1/adapters/new", {"path": "small"})
    stop = threading.Event()
    wrong: list[object] = []
    count = [0]

    def traffic(worker: int) -> None:
        turn = worker
        while not stop.is_set():
            turn += 1
            prompt = turn % len(PROMPTS)
            name = ("new", "middle")[turn % 2]
            try:
                text = ask(server, name, PROMPTS[prompt])
            except openai.NotFoundError:
                continue  # between a removal and the next load
            allowed = {"small", "large"} if name == "new" else {"middle"}
            if text not in {answers[each, prompt] for each in allowed}:
                wrong.append((name, prompt, text))
            count[0] += 1

    with ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(traffic, worker) for worker in range(6)]
        try:
            for turn in range(400):
                if turn >= 12 and count[0] > 12:  # however slow the machine is
                    break
                status, _ = call(server, "PUT", "/v1/adapters/new", {"path": ("large", "small")[turn % 2]})
                assert status == 200
                if turn % 4 == 3:
                    assert call(server, "DELETE", "/v1/adapters/new")[0] == 200
                    assert call(server, "PUT", "/v1/adapters/new", {"path": "small"})[0] == 201
        finally:
            stop.set()
        for worker in workers:
            worker.result(60)
    assert not wrong
    assert count[0] > 12
    cards = call(server, "GET", "/v1/adapters")[1]["data"]
    assert {card["state"] for card in cards} == {"ready"}
    assert sorted(card["name"] for card in cards) == ["large", "middle", "new", "partial", "small"]


def test_a_stream_ends_on_the_weights_it_began_with(server: ServerProcess) -> None:
    call(server, "PUT", "/v1/adapters/new", {"path": "small"})
    prompt = PROMPTS[1]
    before = ask(server, "new", prompt, 200)
    stream = iter(
        server.client.completions.create(model="new", prompt=prompt, temperature=0, max_tokens=200, stream=True)
    )
    pieces = [next(stream)]
    call(server, "PUT", "/v1/adapters/new", {"path": "large"})
    call(server, "DELETE", "/v1/adapters/new")
    pieces += stream
    assert "".join(piece.choices[0].text for piece in pieces) == before


def test_an_adapter_loaded_at_run_time_survives_the_engine(
    server: ServerProcess, sources: Path, expected: Callable[[str, list[int]], str]
) -> None:
    call(server, "PUT", "/v1/adapters/new", {"path": "small"})
    shutil.rmtree(sources / "small")  # the server has a copy
    server.engine().kill()
    assert ask(server, "new", PROMPTS[2]) == expected("small", PROMPTS[2])


def test_vllms_endpoints_answer_in_its_words(server: ServerProcess) -> None:
    def load(**body: object) -> tuple[int, Any]:
        return call(server, "POST", "/v1/load_lora_adapter", body)

    def unload(**body: object) -> tuple[int, Any]:
        return call(server, "POST", "/v1/unload_lora_adapter", body)

    assert load(lora_name="new", lora_path="small") == (200, "Success: LoRA adapter 'new' added successfully.")
    status, body = load(lora_name="new", lora_path="large")
    assert status == 400
    assert body["error"] == {
        "message": "The lora adapter 'new' has already been loaded. If you want to load the adapter in place, set "
        "'load_inplace' to True.",
        "type": "InvalidUserInput",
        "param": None,
        "code": 400,
    }
    assert load(lora_name="new", lora_path="large", load_inplace=True)[0] == 200
    assert load(lora_name="new")[1]["error"]["message"] == "Both 'lora_name' and 'lora_path' must be provided."
    assert load(lora_name="other", lora_path="nowhere")[0] == 404
    assert unload(lora_name="new", lora_int_id=None) == (200, "Success: LoRA adapter 'new' removed successfully.")
    status, body = unload(lora_name="new")
    assert (status, body["error"]["message"]) == (404, "The lora adapter 'new' cannot be found.")
    status, body = unload()
    assert (status, body["error"]["type"]) == (400, "InvalidUserInput")


def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    server: ServerProcess, sources: Path, tmp_path: Path, expected: Callable[[str, list[int]], str]
) -> None:
    def put(name: str, path: str) -> tuple[int, str]:
        status, body = call(server, "PUT", f"/v1/adapters/{name}", {"path": path})
        return status, body["error"]["code"]

    flipped = sources / "large" / "large.onnx_adapter"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 16
    flipped.write_bytes(data)
    given = sources / "given"  # the watch does not look so deep
    (given / "empty").mkdir(parents=True)
    outside = shutil.copytree(sources / "small", tmp_path / "outside")
    (given / "link").symlink_to(outside)
    shutil.copytree(sources / "small", given / "peek")
    weights = given / "peek" / "small.onnx_adapter"
    weights.unlink()
    weights.symlink_to(outside / "small.onnx_adapter")
    assert put("small", "large") == (422, "adapter_invalid")
    assert put("new", "given/empty") == (422, "adapter_invalid")
    assert put("new", "given/peek") == (422, "adapter_invalid")
    assert put("new", "given/link") == (403, "forbidden")
    assert put("new", "../outside") == (403, "forbidden")
    assert put("new", str(outside)) == (403, "forbidden")
    assert put("new", "nowhere") == (404, "model_not_found")
    assert put("new", "x" * 5000) == (404, "model_not_found")
    assert put("new", "a\0b") == (404, "model_not_found")
    assert put("tiny", "small") == (400, "invalid_value")
    assert put("a%20b", "small") == (400, "invalid_value")
    assert call(server, "PUT", "/v1/adapters/new", {"pfad": "small"})[1]["error"]["code"] == "unknown_parameter"
    assert call(server, "PUT", "/v1/adapters/new", {})[1]["error"]["param"] == "path"
    assert ask(server, "small", PROMPTS[0]) == expected("small", PROMPTS[0])
    assert len(call(server, "GET", "/v1/adapters")[1]["data"]) == 4


def test_an_adapter_is_uploaded(
    server: ServerProcess, tiny: TinyBundle, expected: Callable[[str, list[int]], str]
) -> None:
    peft = tiny.adapters["partial"]
    status, card = upload(server, "new", peft / "adapter_config.json", peft / "adapter_model.safetensors")
    assert (status, card["source"]) == (201, "upload")
    assert ask(server, "new", PROMPTS[4]) == expected("partial", PROMPTS[4])
    ours = tiny.folder / "adapters" / "small"
    assert upload(server, "new", ours / "adapter.json", ours / "small.onnx_adapter")[0] == 200
    assert ask(server, "new", PROMPTS[4]) == expected("small", PROMPTS[4])


@pytest.mark.parametrize("server", ["batched"], indirect=True)  # no lane ever sees one
def test_uploads_that_are_no_adapter_are_refused(
    server: ServerProcess, tiny: TinyBundle, expected: Callable[[str, list[int]], str]
) -> None:
    peft = tiny.adapters["partial"]
    config, weights = peft / "adapter_config.json", peft / "adapter_model.safetensors"
    header = (2**60).to_bytes(8, "little")
    cases: list[tuple[list[Path | tuple[str, bytes]], int]] = [
        ([config], 422),
        ([weights], 422),
        ([config, ("adapter_model.safetensors", b"")], 422),
        ([config, ("adapter_model.safetensors", weights.read_bytes()[:-9])], 422),
        ([config, ("adapter_model.safetensors", header + b"{}")], 422),
        ([config, ("adapter_model.bin", b"\x80\x04.")], 400),
        ([config, ("../adapter_model.safetensors", weights.read_bytes())], 400),
        ([config, ("adapter.zip", b"PK")], 400),
        ([config, config, weights], 400),
        ([config, weights, ("a.jinja", b""), ("b.jinja", b""), ("c.jinja", b"")], 400),
        ([("adapter_config.json", b'{"peft_type": "LORA", "use_dora": true}'), weights], 422),
        ([("adapter_config.json", b"{" * 100_000), weights], 422),
    ]
    for files, wanted in cases:
        status, body = upload(server, "new", *files)
        assert status == wanted, (files, body)
        assert body["error"]["message"].count("\n") == 0
        assert "/" not in body["error"]["message"].replace("../", ""), body  # where the server keeps its files
    request = urllib.request.Request(
        server.url + "/v1/adapters/new", b"x" * 99, {"content-type": "multipart/form-data; boundary=y"}, method="PUT"
    )
    with pytest.raises(urllib.error.HTTPError, match="400") as refusal:
        urllib.request.urlopen(request, timeout=PATIENCE)
    refusal.value.close()
    assert [card["name"] for card in call(server, "GET", "/v1/adapters")[1]["data"]] == list(tiny.adapters)
    assert ask(server, "small", PROMPTS[0]) == expected("small", PROMPTS[0])


def test_a_peft_folder_on_the_server_is_converted(
    server: ServerProcess, sources: Path, tiny: TinyBundle, expected: Callable[[str, list[int]], str]
) -> None:
    shutil.copytree(tiny.adapters["large"], sources / "peft")
    assert call(server, "PUT", "/v1/adapters/new", {"path": "peft"})[0] == 201
    assert ask(server, "new", PROMPTS[5]) == expected("large", PROMPTS[5])


def test_an_adapter_over_the_limit_is_refused(tiny: TinyBundle, sources: Path, tmp_path: Path) -> None:
    flags = ("--dev", "--adapter-dir", str(sources), "--max-adapter-bytes", "1000")
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        status, body = call(server, "PUT", "/v1/adapters/new", {"path": "small"})
        assert status == 422
        assert "1000 at most" in body["error"]["message"]
        assert upload(server, "new", tiny.adapters["small"] / "adapter_model.safetensors")[0] == 413
