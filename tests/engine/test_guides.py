"""Guided answers are always what their guide says, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from loraplex.server.bundle import Bundle
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.grammar import grammar
from loraplex.server.engine.messages import Guide, Sampling, Submit
from tests.checkpoints import make_checkpoint
from tests.engine.lanes import GREEDY, run

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
PATTERN = r"[a-c]{3,8}(-[0-9]{2})?"
GRAMMAR = 'start: "(" item ("," item)~1..3 ")"\nitem: /[xyz]+/\n'
GUIDES = [Guide("json_schema", json.dumps(SCHEMA)), Guide("regex", PATTERN), Guide("grammar", GRAMMAR)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random model over bytes, which says nothing sensible by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from loraplex.build.assembly import build_bundle

    folder = tmp_path_factory.mktemp("bytes")
    checkpoint = make_checkpoint(folder / "checkpoint", vocab_size=300)
    words = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:3])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(checkpoint)
    return build_bundle(checkpoint, {}, folder / "bundle", name="bytes", precision="float32")


@pytest.fixture(scope="module", params=["batched", "generator"])
def lane(bundle: Bundle, request: pytest.FixtureRequest) -> BatchedLane | GeneratorLane:
    folder = bundle.variant("generator")
    if request.param == "batched":
        return BatchedLane(folder, threads=1, prefill_chunk=16)
    return GeneratorLane(folder, device="cpu", threads=1, prefill_chunk=16)


def text(bundle: Bundle, tokens: list[int]) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(bundle.variant("generator") / "tokenizer.json")).decode(tokens))


def valid(guide: Guide, answer: str) -> bool:
    match guide.kind:
        case "json_schema":
            found = json.loads(answer)
            return found.keys() == {"name", "count"} and found["name"] in ("red", "blue") and 1 <= found["count"] <= 99
        case "regex":
            return re.fullmatch(PATTERN, answer) is not None
        case "grammar":
            return re.fullmatch(r"\([xyz]+(,[xyz]+){1,3}\)", answer) is not None


def test_every_guided_answer_is_valid(bundle: Bundle, lane: BatchedLane | GeneratorLane) -> None:
    requests = []
    for index in range(24):
        sampling = Sampling(temperature=[0.0, 0.7, 1.5][index % 3], seed=index, logit_bias={125: 4.0, 64: 3.0})
        requests.append(Submit(2 * index, None, [40 + index, 50], 200, sampling, GUIDES[index % len(GUIDES)]))
        requests.append(Submit(2 * index + 1, None, [40 + index, 51], 20, sampling))  # free company
    answers = run(lane, requests)
    for request in requests:
        answer = answers[request.sequence]
        assert answer.error is None
        if request.guide is not None and answer.finish == "stop":
            assert valid(request.guide, text(bundle, answer.tokens[:-1]))
    stopped = [r for r in requests if r.guide is not None and answers[r.sequence].finish == "stop"]
    assert len(stopped) >= 12, "most answers end by themselves"


def test_a_guide_that_cannot_be_compiled_is_told_and_costs_nobody_else(lane: BatchedLane | GeneratorLane) -> None:
    bad = [
        Guide("regex", "(["),
        Guide("json_schema", '{"type": 3}'),
        Guide("json_schema", "{"),
        Guide("grammar", "start: foo"),
    ]
    requests = [Submit(index, None, [60], 5, GREEDY, guide) for index, guide in enumerate(bad)]
    answers = run(lane, [*requests, Submit(9, None, [60], 5, GREEDY)])
    for index, guide in enumerate(bad):
        assert answers[index].error is not None
        assert guide.kind in (answers[index].error or "")
    assert len(answers[9].tokens) == 5


def test_a_tokenizer_that_llguidance_cannot_read_is_told(folder: Path) -> None:
    lane = BatchedLane(folder, threads=1, prefill_chunk=16)  # a word-level tokenizer
    answer = run(lane, [Submit(0, None, [60], 5, GREEDY, GUIDES[1])])[0]
    assert answer.error is not None
    assert not lane.busy


def test_streams_go_on_while_a_large_guide_is_compiled(lane: BatchedLane | GeneratorLane) -> None:
    large = Guide("regex", "".join(f"(a{index}|b{index}.*)?" for index in range(1500)) + "z")
    endless = Sampling(temperature=0, ignore_eos=True)
    lane.submit(Submit(0, None, [60], 200, endless))
    lane.step()
    lane.submit(Submit(1, None, [60], 4, GREEDY, large))
    before = 0
    while 1 not in (outputs := {output.sequence: output for output in lane.step()}):
        before += len(outputs)
    assert before > 10
    assert outputs[1].error is None
    lane.cancel(0)
    lane.cancel(1)
    assert not lane.busy


def test_a_request_can_be_cancelled_while_its_guide_is_compiled(lane: BatchedLane | GeneratorLane) -> None:
    large = Guide("regex", "".join(f"(a{index}|c{index}.*)?" for index in range(1500)) + "z")
    for index in range(3):
        lane.submit(Submit(index, None, [60], 4, GREEDY, large))
    assert lane.busy
    for index in (1, 0, 2):
        lane.cancel(index)
    assert not lane.busy
    assert lane.step() == []


def test_guides_of_cancelled_requests_are_not_compiled(
    lane: BatchedLane | GeneratorLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    gate = threading.Event()

    def gated(guide: Guide) -> str:
        begun.append(guide.text)
        gate.wait()
        return grammar(guide)

    monkeypatch.setattr("loraplex.server.engine.guide.grammar", gated)
    *cancelled, last = [Submit(index, None, [60], 4, GREEDY, Guide("regex", f"a{index}")) for index in range(20)]
    for request in cancelled:
        lane.submit(request)
    lane.step()
    for request in cancelled:
        lane.cancel(request.sequence)
    gate.set()
    assert run(lane, [last])[19].error is None  # its guide comes after all that came before
    # The first may have been begun before it was cancelled.
    assert not {f"a{index}" for index in range(1, 19)}.intersection(begun)
