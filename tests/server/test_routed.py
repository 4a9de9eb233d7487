"""`loraplex serve --engine routed` over HTTP, on a CPU, where the code is CUDA's but for kernels and scheduler."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openai
import pytest

from loraplex.server.bundle import Bundle
from loraplex.server.engine.linker import link
from tests.checkpoints import reference_tokens
from tests.server.calls import call, upload
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import ServerProcess, command, serving, wait_until
from tests.server.test_parity import text

MODELS = ("tiny", "small", "middle", "large", "partial")
PROMPT = [99, 8, 64, 64, 41, 150, 12, 77, 31]


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("routed")
    flags = (
        "--engine",
        "routed",
        "--device",
        "cpu",
        "--max-running",
        "8",
        "--dev",
        "--link-cache",
        str(folder / "cache"),
    )
    with serving(tiny.folder, folder / "log", *flags) as found:
        yield found
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "4 adapters linked" in log


def ask(server: ServerProcess, model: str, prompt: list[int], **options: Any) -> Any:
    """The first choice of a greedy answer."""
    options = {"temperature": 0, "max_tokens": 24} | options
    return server.client.completions.create(model=model, prompt=prompt, **options).choices[0]


def test_each_adapter_answers_as_peft_does(tiny: TinyBundle, server: ServerProcess) -> None:
    for turn in range(2):
        for model in MODELS:
            # The same prompt under every adapter, again and again: nothing of one's keys and values reaches another.
            expected = text(reference_tokens(tiny.checkpoint, tiny.adapters.get(model), PROMPT, 24))
            assert ask(server, model, PROMPT).text.strip() == expected.strip(), turn


async def test_eight_at_once_answer_as_each_alone(server: ServerProcess) -> None:
    asked = [(MODELS[index % len(MODELS)], PROMPT[: 3 + index % 5]) for index in range(8)]
    alone = [ask(server, model, prompt).text for model, prompt in asked]
    async with server.async_client as client:
        together = await asyncio.gather(
            *(
                client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=24)
                for model, prompt in asked
            )
        )
    assert [answer.choices[0].text for answer in together] == alone


def test_a_stream_is_the_answer_in_pieces(server: ServerProcess) -> None:
    whole = ask(server, "large", PROMPT)
    pieces = list(
        server.client.completions.create(model="large", prompt=PROMPT, temperature=0, max_tokens=24, stream=True)
    )
    assert "".join(piece.choices[0].text for piece in pieces) == whole.text
    assert pieces[-1].choices[0].finish_reason == whole.finish_reason
    assert len(pieces) > 5


def test_a_client_that_leaves_cancels(server: ServerProcess) -> None:
    labels = {"adapter": "middle", "finish_reason": "cancelled"}
    before = server.metric("loraplex_requests_total", **labels)
    stream = server.client.completions.create(
        model="middle", prompt=[10], n=128, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )  # seconds of work
    next(stream)
    stream.close()
    wait_until(lambda: server.metric("loraplex_requests_total", **labels) > before)
    server.wait_for("loraplex_requests_running", 0, adapter="middle")


def test_stops(server: ServerProcess) -> None:
    words = ask(server, "small", PROMPT).text.split()
    by_text = ask(server, "small", PROMPT, stop=[words[3]])
    assert by_text.text.split() == words[: words.index(words[3])]
    by_id = ask(server, "small", PROMPT, extra_body={"stop_token_ids": [int(words[3].removeprefix("w"))]})
    assert by_id.text.split() == words[: words.index(words[3])]
    assert by_text.finish_reason == by_id.finish_reason == "stop"


@pytest.mark.parametrize("prompt", [[160], [10, 160], [-1], [2**31 - 1], [160 * 2 + 10]])
def test_ids_out_of_range_are_refused(server: ServerProcess, prompt: list[int]) -> None:
    """The vocabulary has 160 tokens; ids beyond it choose adapters inside the engine."""
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(server, "tiny", prompt)
    assert refusal.value.status_code == 400


def test_no_answer_has_ids_out_of_range(server: ServerProcess) -> None:
    answer = ask(server, "large", PROMPT, temperature=2, max_tokens=100, extra_body={"ignore_eos": True})
    assert all(8 <= int(word.removeprefix("w")) < 160 for word in answer.text.split())


@pytest.mark.parametrize("count", [1, 3])
def test_a_seed_gives_its_answer_again(server: ServerProcess, count: int) -> None:
    def sample(seed: int) -> list[str]:
        answer = server.client.completions.create(
            model="middle",
            prompt=PROMPT,
            n=count,
            seed=seed,
            temperature=1.5,
            max_tokens=24,
            extra_body={"ignore_eos": True},
        )
        return [choice.text for choice in answer.choices]

    first = sample(11)
    assert sample(11) == sample(11) == first
    assert len({*first, *sample(1000)}) == 2 * count


def test_what_the_engine_cannot_do_another_does(tiny: TinyBundle, server: ServerProcess) -> None:
    """On a CPU the batched engine is opened beside it; it shares nothing with the routed one but the weights' file."""
    answer = ask(server, "middle", PROMPT, logprobs=2, max_tokens=6)
    expected = text(reference_tokens(tiny.checkpoint, tiny.adapters["middle"], PROMPT, 6))
    assert answer.text.strip() == expected.strip()
    assert [len(top) for top in answer.logprobs.top_logprobs] == [2] * 6
    forced = ask(server, "middle", PROMPT, logit_bias={"50": 100}, max_tokens=4)
    assert forced.text.split() == ["w50"] * 4


def test_metrics_name_the_lane_that_answered(server: ServerProcess) -> None:
    """Another adapter than those that the other tests ask the engine beside for."""
    before = server.metric("loraplex_requests_total", lane="routed", adapter="tiny")
    ask(server, "tiny", PROMPT, logprobs=1, max_tokens=6, extra_body={"ignore_eos": True})
    labels = {"lane": "batched", "adapter": "tiny"}
    server.wait_for("loraplex_requests_total", 1, finish_reason="length", **labels)
    assert server.metric("loraplex_prompt_tokens_total", **labels) == len(PROMPT)
    assert server.metric("loraplex_generation_tokens_total", **labels) == 6
    ask(server, "tiny", PROMPT, max_tokens=6)
    server.wait_for("loraplex_requests_total", before + 1, lane="routed", adapter="tiny")


def test_usage_counts(server: ServerProcess) -> None:
    answer = server.client.completions.create(model="small", prompt=PROMPT, max_tokens=5, temperature=0)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 5)


def test_fewer_slots_than_adapters(tiny: TinyBundle, tmp_path: Path) -> None:
    flags = ("--engine", "routed", "--device", "cpu", "--max-linked", "2", "--link-cache", str(tmp_path / "cache"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        for _ in range(2):
            for model in MODELS:
                expected = text(reference_tokens(tiny.checkpoint, tiny.adapters.get(model), PROMPT, 24))
                assert ask(server, model, PROMPT).text.strip() == expected.strip()


@pytest.mark.slow
def test_damaged_folders_in_the_cache_are_linked_anew(tiny: TinyBundle, tmp_path: Path) -> None:
    """That of the base at start, that of the adapters while it serves."""
    cache = tmp_path / "cache" / "linked"
    flags = ("--engine", "routed", "--device", "cpu", "--link-cache", str(cache.parent))
    expected = {
        model: text(reference_tokens(tiny.checkpoint, tiny.adapters.get(model), PROMPT, 24)).strip() for model in MODELS
    }

    def serve(log: Path) -> str:
        """Ask for every model until all are linked, and once more; the log."""
        with serving(tiny.folder, log, *flags) as server:
            engine, linked = server.engine().pid, False

            def answers() -> bool:
                nonlocal linked
                before, linked = linked, "4 adapters linked" in log.read_text()
                for model in MODELS:
                    assert ask(server, model, PROMPT).text.strip() == expected[model]
                return before

            wait_until(answers, log.read_text)
            assert server.engine().pid == engine
        return log.read_text()

    assert "linked anew" not in serve(tmp_path / "first")
    link(Bundle.open(tiny.folder).variant("generator"), [], cache)  # the base's is the oldest, and may be gone
    for folder in cache.iterdir():
        for name in ("model.onnx", "bank.data"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
    log = serve(tmp_path / "second")
    assert "it is linked anew" in log
    assert "the one before goes on" in log
    assert "Traceback" not in log


def test_what_no_engine_of_an_old_bundle_has_is_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    """Its graph takes the last token in a way that cannot be fed other positions."""
    bundle = shutil.copytree(tiny.folder, tmp_path / "bundle")
    model = onnx.load(bundle / "base" / "generator" / "model.onnx", load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    gather, unsqueeze = nodes["/lm_head/prune/Gather"], nodes["/lm_head/prune/Unsqueeze"]
    for name, value in (("starts", -1), ("ends", 2**31 - 1), ("axes", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    last = onnx.helper.make_node("Slice", [gather.input[0], "starts", "ends", "axes"], [unsqueeze.output[0]])
    model.graph.node.insert(list(model.graph.node).index(gather), last)
    model.graph.node.remove(gather)
    model.graph.node.remove(unsqueeze)
    onnx.save(model, bundle / "base" / "generator" / "model.onnx")
    flags = ("--engine", "routed", "--device", "cpu", "--link-cache", str(tmp_path / "cache"))
    with serving(bundle, tmp_path / "log", *flags) as server:
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(server, "small", PROMPT, echo=True, logprobs=1)
        assert refusal.value.code == "unsupported_parameter"
        assert [len(top) for top in ask(server, "small", PROMPT, logprobs=2, max_tokens=6).logprobs.top_logprobs] == [
            2
        ] * 6


def test_adapters_that_go_as_soon_as_they_have_come(tiny: TinyBundle, server: ServerProcess) -> None:
    """What links them, beside the requests, still finds their files."""
    for turn in range(3):
        name = f"passing{turn}"
        assert upload(server, name, *tiny.adapters["small"].glob("adapter_*"))[0] == 201
        assert call(server, "DELETE", f"/v1/adapters/{name}")[0] == 200
    expected = text(reference_tokens(tiny.checkpoint, tiny.adapters["large"], PROMPT, 24))
    assert ask(server, "large", PROMPT).text.strip() == expected.strip()
    log = server.log.read_text()
    assert "cannot be linked" not in log
    assert " ERROR " not in log


def test_guided_answers_are_valid(tmp_path: Path) -> None:
    flags = ("--engine", "routed", "--device", "cpu", "--link-cache", str(tmp_path / "cache"))
    schema = {"type": "object", "properties": {"stars": {"enum": [1, 2, 3]}}, "required": ["stars"]}
    with serving(DEMO, tmp_path / "log", *flags) as server:
        for model in ("travel", "tone"):
            answer = server.client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Tell me about Paris."}],
                max_tokens=60,
                temperature=0,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "stars", "schema": schema | {"additionalProperties": False}},
                },
            )
            assert json.loads(answer.choices[0].message.content or "")["stars"] in (1, 2, 3)


def test_routed_on_cuda_needs_cuda(tiny: TinyBundle) -> None:
    """One line that says so, where the installed onnxruntime-genai has no CUDA."""
    found = subprocess.run(
        command(tiny.folder, "--engine", "routed", "--device", "cuda"), capture_output=True, text=True, timeout=60
    )
    if "no CUDA" not in found.stderr:
        pytest.skip("this machine has CUDA")
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
