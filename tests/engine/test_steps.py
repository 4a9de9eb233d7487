"""What a step does: slices between tokens, turns by adapter, and failures that stay with their sequence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import AdapterFormat, OrtValue

from loraplex.server.bundle import AdapterManifest, Bundle
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.errors import AdapterInvalid, BundleInvalid
from tests.engine.lanes import GREEDY, Model, ask, batched, generator, run

LONG = [int(token) for token in np.random.default_rng(3).integers(8, 150, 96)]
ENDLESS = Sampling(temperature=0, ignore_eos=True)


def test_a_stream_gets_a_token_a_step_while_a_long_prompt_is_computed(llama: Model) -> None:
    lane = batched(llama)
    lane.submit(Submit(0, None, [9, 10], 60, ENDLESS))
    assert [output.sequence for output in lane.step()] == [0]
    lane.submit(Submit(1, "four", LONG, 4, ENDLESS))
    for _ in range(len(LONG) // 8 - 1):
        assert [output.sequence for output in lane.step()] == [0]
    assert [output.sequence for output in lane.step()] == [0, 1]


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (8, 1), (10, 1), (11, 2), (18, 2), (19, 3), (96, 12)])
def test_a_few_tokens_are_no_slice_of_their_own(llama: Model, tokens: int, steps: int) -> None:
    lane = batched(llama)
    lane.submit(Submit(0, "four", LONG[:tokens], 4, ENDLESS))
    for _ in range(steps - 1):
        assert lane.step() == []
    assert [output.sequence for output in lane.step()] == [0]


@pytest.mark.parametrize("tokens", [8, 10, 11, 19, 23, 57])
def test_slices_of_a_prompt_leave_its_answer_as_it_is(llama: Model, tokens: int) -> None:
    answer = ask(batched(llama), LONG[:tokens], "nine", 8)
    assert answer.tokens == llama.expected("nine", tuple(LONG[:tokens]), 8)


def test_a_flood_of_one_adapter_costs_another_one_slice(llama: Model) -> None:
    lane = batched(llama)
    for index in range(8):
        lane.submit(Submit(index, "nine", LONG, 4, ENDLESS))
    lane.step()
    lane.submit(Submit(9, "four", LONG[:8], 4, ENDLESS))
    first = [output.sequence for _ in range(2) for output in lane.step()]
    assert first == [9]


def test_prompts_of_many_adapters_end_one_after_the_other(llama: Model) -> None:
    """Two slices each: the first stream begins before the second prompt does."""
    lane = batched(llama)
    names = [f"copy-{index}" for index in range(8)]
    for name in names:
        folder = llama.bundle.adapter("four")
        lane.load_adapter(name, folder, check_adapter(folder, llama.bundle.manifest.base))
    for index, name in enumerate(names):
        lane.submit(Submit(index, name, LONG[:16], 40, ENDLESS))
    begun: dict[int, int] = {}
    for step in range(1, 17):
        for output in lane.step():
            begun.setdefault(output.sequence, step)
    assert begun == {index: 2 * index + 2 for index in range(8)}


@pytest.mark.parametrize("tokens", [8, 16])
def test_short_prompts_without_end_do_not_keep_a_long_one_waiting(llama: Model, tokens: int) -> None:
    """Their answers have one token, so that their adapter never has a stream; each takes one slice or two."""
    lane, random = batched(llama), np.random.default_rng(5)
    lane.submit(Submit(0, "four", LONG, 4, ENDLESS))
    answered = waited = 0
    found = {0: False}
    while not found[0]:
        if len(found) == answered + 1:
            found[len(found)] = False
            prompt = [int(token) for token in random.integers(8, 150, tokens)]
            lane.submit(Submit(len(found) - 1, "nine", prompt, 1, ENDLESS))
        for output in lane.step():
            found[output.sequence] = True
            answered += output.sequence != 0
        waited += 1
        assert waited <= len(LONG) // 8 * (1 + tokens // 8), "one slice of its own after each prompt of the other"
    assert answered >= len(LONG) // 8 - 2, "only its last slice comes before a turn of the other"


def test_bad_requests_are_told_one_by_one(llama: Model) -> None:
    lane = batched(llama)
    bad = [
        Submit(1, "missing", [9], 4, GREEDY),
        Submit(2, None, [160], 4, GREEDY),
        Submit(3, None, [-1], 4, GREEDY),
        Submit(4, None, [], 4, GREEDY),
        Submit(5, None, [9], 4, Sampling(logit_bias={160: 1.0})),
        Submit(6, None, [9], 4, Sampling(stop_tokens=[-7])),
    ]
    answers = run(lane, [*bad, Submit(9, None, [9], 4, ENDLESS)])
    assert all(answers[request.sequence].error for request in bad)
    assert len(answers[9].tokens) == 4


def test_an_adapter_that_overflows_fails_alone(llama: Model, tmp_path: Path) -> None:
    lane = batched(llama)
    values = {}
    for projection, (rows, columns) in llama.bundle.manifest.base.projections.items():
        for side, shape in (("A", (rows, 2)), ("B", (2, columns))):
            weight = np.full(shape, 1e30, np.float32)
            values[f"model.layers.{projection}.lora_{side}.weight"] = OrtValue.ortvalue_from_numpy(weight)
    file = AdapterFormat()
    file.set_parameters(values)
    file.export_adapter(str(tmp_path / "huge.onnx_adapter"))
    base = llama.bundle.manifest.base
    manifest = AdapterManifest(1, "huge.onnx_adapter", "0" * 64, base.fingerprint, "float32", {}, {})
    lane.load_adapter("huge", tmp_path, manifest)
    requests = [Submit(i, ["huge", None, "four"][i % 3], LONG[i : i + 9], 12, GREEDY) for i in range(6)]
    answers = run(lane, requests)
    for request in requests:
        if request.adapter == "huge":
            assert answers[request.sequence].error == "the model's output is not finite"
        else:
            expected = llama.expected(request.adapter, tuple(request.prompt), 12)
            assert answers[request.sequence].tokens == expected


@pytest.mark.parametrize("damage", [lambda _: b"damaged", lambda content: content.replace(b"model.", b"model\xff")])
def test_an_adapter_that_breaks_after_its_checks_is_refused(
    llama: Model, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = Path(shutil.copytree(llama.bundle.adapter("four"), tmp_path / "four"))
    manifest = check_adapter(folder, llama.bundle.manifest.base)
    (folder / manifest.file).write_bytes(damage((folder / manifest.file).read_bytes()))
    lane = batched(llama)
    with pytest.raises(AdapterInvalid, match="adapter 'mine'"):
        lane.load_adapter("mine", folder, manifest)


def test_what_the_generator_lane_cannot_do_it_refuses(llama: Model) -> None:
    lane = generator(llama)
    answers = run(lane, [Submit(0, None, [9], 4, Sampling(prompt_logprobs=0)), Submit(1, None, [9], 4, GREEDY)])
    assert "prompt_logprobs" in (answers[0].error or "")
    assert answers[1].tokens == llama.expected(None, (9,), 4)


@pytest.mark.parametrize("make", [generator, batched])
def test_an_end_token_does_not_end_an_answer_that_ignores_it(int4: Model, make: Callable[[Model], Lane]) -> None:
    lane = make(int4)
    prompt = next([token] for token in range(8, 150) if ask(lane, [token], max_tokens=200).finish == "stop")
    answer = ask(lane, prompt, max_tokens=200, sampling=ENDLESS)
    assert (len(answer.tokens), answer.finish) == (200, "length")


def test_a_base_that_is_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleInvalid):
        BatchedLane(tmp_path, threads=1, prefill_chunk=0)
    (tmp_path / "genai_config.json").write_bytes((folder / "genai_config.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleInvalid):
        BatchedLane(tmp_path, threads=1, prefill_chunk=0)


@pytest.fixture
def gap(llama: Model, tmp_path: Path) -> Model:
    """The llama bundle whose base has no embedding for the ids from 140 on: onnxruntime refuses a pass with one."""
    shutil.copytree(llama.bundle.folder, tmp_path / "bundle")
    path = tmp_path / "bundle" / "base" / "generator" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (embedding,) = (tensor for tensor in model.graph.initializer if "embed_tokens" in tensor.name)
    (length,) = (entry for entry in embedding.external_data if entry.key == "length")
    length.value = str(int(length.value) * 140 // embedding.dims[0])
    embedding.dims[0] = 140
    onnx.save(model, path)
    return Model(Bundle.open(tmp_path / "bundle"), llama.checkpoint, llama.peft)


def test_a_pass_that_onnxruntime_refuses_costs_the_row_that_it_is_refused_for(gap: Model) -> None:
    lane = batched(gap)
    unmade = Sampling(temperature=0, ignore_eos=True, logit_bias={150: 1e4})
    made = Sampling(temperature=0, ignore_eos=True, logit_bias=dict.fromkeys(range(140, 160), -10000.0))
    requests = [
        Submit(0, None, LONG[:9], 12, made),
        Submit(1, "four", [9, 10], 12, unmade),
        Submit(2, "nine", [11, 12, 150], 12, made),
        Submit(3, "four", LONG[:20], 12, made),
        Submit(4, None, LONG[:5], 12, unmade),
    ]
    answers = run(lane, requests)
    for index in (1, 2, 4):
        error = answers[index].error
        assert error is not None
        assert "150" in error
        assert "\n" not in error
    assert [answers[index].tokens for index in (1, 2, 4)] == [[150], [], [150]]
    for index in (0, 3):
        assert answers[index].error is None
        assert answers[index].tokens == run(batched(gap), [requests[index]])[index].tokens
    assert not lane.busy


def test_a_base_that_onnxruntime_refuses_is_told(gap: Model) -> None:
    folder = gap.bundle.variant("generator")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(BundleInvalid, match="NoSuchOperator"):
        BatchedLane(folder, threads=1, prefill_chunk=0)
