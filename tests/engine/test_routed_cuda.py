"""The routed lane on a GPU: compiled operator, paged KV cache, prefix cache and CUDA graphs against PEFT.

Skipped where there is no CUDA: continuous integration has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest

from loraplex.build.assembly import build_bundle
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.expansion import expand
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.lora_operator import find_operator
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions
from tests.checkpoints import Family, make_adapter, make_checkpoint, quiet, reference_logits
from tests.engine.lanes import GREEDY, Answer, Model, ask, run

pytestmark = [
    pytest.mark.skipif(not og.is_cuda_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
"""Head size 64, the smallest that the paged attention kernels take."""
PROMPT = [0, *(8 + 7 * position % 150 for position in range(40))]
COUNT = 24
NEAR = 0.05
"""Standard deviations of the logits that a token may be below the best where float16 prefers it."""


@dataclass(frozen=True)
class Paged:
    """A CUDA bundle."""

    model: Model
    cache: Path
    operator: Path

    def lane(self, *names: str, **options: Any) -> RoutedLane:
        """With these adapters registered."""
        folder = options.pop("folder", self.model.bundle.variant("paged"))
        defaults: dict[str, Any] = {
            "options": EngineOptions(kv_bytes=2**28),
            "operator": self.operator,
            "cache": self.cache,
        }
        lane = RoutedLane(folder, device="cuda", threads=1, **(defaults | options))
        for name in names:
            self.load(lane, name)
        return lane

    def load(self, lane: RoutedLane, name: str, source: str = "") -> None:
        folder = self.model.bundle.adapter(source or name)
        lane.load_adapter(name, folder, check_adapter(folder, self.model.bundle.manifest.base))

    def check(self, answers: dict[int, Answer], asked: list[Submit]) -> None:
        """PEFT's tokens, up to where float16 takes the other of two that are near a tie."""
        for request in asked:
            answer = answers[request.sequence]
            assert answer.error is None
            self.check_tokens(answer.tokens, request.adapter, request.prompt)

    def check_tokens(self, tokens: list[int], adapter: str | None, prompt: list[int]) -> None:
        expected = self.model.expected(adapter, tuple(prompt), COUNT)[: len(tokens)]
        same = next((at for at, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), None)
        if same is None:
            assert tokens == expected
            return
        peft = self.model.peft[adapter] if adapter else None
        logits = reference_logits(self.model.checkpoint, peft, [*prompt, *expected[:same]])[-1]
        lost = (logits[expected[same]] - logits[tokens[same]]) / logits.std()
        assert lost < NEAR, f"{adapter}: token {same} is {lost:.3f} standard deviations below the best"


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_operator(tmp_path_factory.mktemp("operator"))
    assert found, "the operator was not compiled"
    return found


@pytest.fixture(scope="module", params=["llama", "phi3", "qwen2"])
def paged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, operator: Path) -> Paged:
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family)
    rope = {"original_max_position_embeddings": 1024} if family == "phi3" else {}
    checkpoint = make_checkpoint(folder / "checkpoint", family, **WIDE, **rope)
    some = ["qkv_proj", "down_proj"] if family == "phi3" else ["q_proj", "v_proj", "o_proj", "gate_proj"]
    peft = {
        "eight": make_adapter(checkpoint, folder / "eight", rank=8, alpha=4, seed=1),
        "some": make_adapter(checkpoint, folder / "some", rank=3, alpha=3, targets=some, seed=2),
        "sixteen": make_adapter(checkpoint, folder / "sixteen", rank=16, alpha=4, seed=3),
        "forty": make_adapter(checkpoint, folder / "forty", rank=40, alpha=4, seed=4),
    }
    with quiet():
        bundle = build_bundle(checkpoint, peft, folder / "bundle", name="tiny", precision="float16", device="cuda")
    return Paged(Model(bundle, checkpoint, peft), folder / "cache", operator)


def requests(adapters: list[str | None], repeat: int = 1, start: int = 0) -> list[Submit]:
    turns = adapters * repeat
    return [
        Submit(start + index, adapter, PROMPT[: len(PROMPT) - 3 * (index % len(adapters))], COUNT, GREEDY)
        for index, adapter in enumerate(turns)
    ]


@pytest.mark.parametrize("fused", [True, False])
def test_mixed_batch(paged: Paged, fused: bool) -> None:
    lane = paged.lane(*paged.model.peft, operator=paged.operator if fused else None)
    for repeat in (1, 9):
        asked = requests([None, *paged.model.peft], repeat)
        paged.check(run(lane, asked), asked)
    assert (lane.layout is not None) == fused


def test_more_adapters_than_slots(paged: Paged) -> None:
    """Slots change hands while sequences run, and nothing of an earlier owner is left in weights or prefix cache."""
    lane = paged.lane(*paged.model.peft, max_linked=2)
    asked = requests([*paged.model.peft, None], 8)
    paged.check(run(lane, asked), asked)
    assert len(lane.linked) == 2
    for name in (*paged.model.peft, *paged.model.peft):
        asked = requests([name])
        paged.check(run(lane, asked), asked)
        assert name in lane.linked


def test_sequences_give_way_and_go_on(paged: Paged) -> None:
    """Who has had a slot for long enough gives way in the middle of an answer, which is the same all the same."""
    lane = paged.lane(*paged.model.peft, max_linked=1, turn_seconds=0.0)
    asked = requests([*paged.model.peft, None], 3)
    answers = {request.sequence: Answer() for request in asked}
    for request in asked:
        lane.submit(request)
    interrupted = set()
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
        for request in asked:
            answer = answers[request.sequence]
            if request.adapter and request.adapter not in lane.linked and answer.tokens and answer.finish is None:
                interrupted.add(request.sequence)
    paged.check(answers, asked)
    assert interrupted, "nobody gave way"


def test_seeded_answers_do_not_give_way(paged: Paged) -> None:
    """The engine begins every seed at its beginning: an answer that went on elsewhere would be another one."""
    lane = paged.lane(*paged.model.peft, max_linked=1, turn_seconds=0.0)
    sampled = Sampling(temperature=1.5, seed=7, seed_given=True)
    asked = [Submit(index, name, PROMPT, 60, sampled) for index, name in enumerate([*paged.model.peft] * 3)]
    answers = {request.sequence: Answer() for request in asked}
    for request in asked:
        lane.submit(request)
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
        for request in asked:
            answer = answers[request.sequence]
            assert request.adapter in lane.linked or not answer.tokens or answer.finish
    for request in asked:
        answer, first = answers[request.sequence], answers[request.sequence % len(paged.model.peft)]
        assert answer.error is None
        assert answer.finish
        assert answer.tokens[:4] == first.tokens[:4]


def test_the_generator_lane_answers_for_cold_adapters(paged: Paged) -> None:
    """Without the operator, while the thread links, and for what the engine cannot do."""
    other = GeneratorLane(paged.model.bundle.variant("generator"), device="cuda", threads=1, prefill_chunk=0)
    lane = paged.lane(*paged.model.peft, operator=None, fallback=lambda: other)
    assert lane.linked == set()
    asked = requests([None, *paged.model.peft])
    for request in asked:
        lane.submit(request)
    assert other.busy
    answers = {request.sequence: Answer() for request in asked}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    paged.check(answers, asked)
    assert lane.linked == set(paged.model.peft)


def test_requests_interrupt_the_capturing_of_graphs(paged: Paged) -> None:
    lane = paged.lane(*paged.model.peft, options=EngineOptions(kv_bytes=2**28, max_batch_size=4))
    for name in (None, *paged.model.peft):
        for _ in range(5):
            lane.step()
        asked = requests([name])
        answers = {0: Answer()}
        lane.submit(asked[0])
        while answers[0].finish is None:
            for output in lane.step():
                answers[output.sequence].add(output)
        paged.check(answers, asked)
    assert run(lane, []) == {}
    assert not lane.busy


def test_prefix_cache_is_each_adapters_own(paged: Paged) -> None:
    lane = paged.lane(*paged.model.peft, max_linked=1)
    prompt = [0, *(8 + 11 * position % 150 for position in range(600))]
    cached = [ask(lane, prompt, name, 4).cached for name in ("eight", "eight", "forty", "eight", "eight")]
    assert cached[1] == cached[4] == 512
    assert cached[0] == cached[2] == 0
    assert cached[3] == 0, "the slot had another owner meanwhile"


def test_a_larger_rank_and_a_replaced_adapter_while_sequences_run(paged: Paged) -> None:
    lane = paged.lane("some", ranks={"0.attn.q_proj": 1})
    asked = requests([None, "some"], 4)
    answers = {request.sequence: Answer() for request in asked}
    for request in asked:
        lane.submit(request)
    while not any(answer.tokens for answer in answers.values()):
        for output in lane.step():
            answers[output.sequence].add(output)
    paged.load(lane, "forty")
    paged.load(lane, "some", source="eight")
    late = [*requests(["forty", None], 2, start=100)]
    for request in late:
        answers[request.sequence] = Answer()
        lane.submit(request)
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    paged.check(answers, [*asked, *late])
    paged.check_tokens(ask(lane, PROMPT, "some", COUNT).tokens, "eight", PROMPT)


def test_weights_expanded_to_float16(tmp_path: Path, operator: Path) -> None:
    """The same values: the first tokens are those of int4, adapter or not."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", **WIDE)
    peft = {"eight": make_adapter(checkpoint, tmp_path / "eight", rank=8, alpha=4, seed=1)}
    with quiet():
        bundle = build_bundle(checkpoint, peft, tmp_path / "bundle", name="tiny", precision="int4", device="cuda")
    paged = Paged(Model(bundle, checkpoint, peft), tmp_path / "cache", operator)
    int4 = paged.lane("eight")
    float16 = paged.lane("eight", folder=expand(bundle.variant("paged"), tmp_path / "float16").folder)
    for name in (None, "eight"):
        assert ask(int4, PROMPT, name, 8).tokens[:4] == ask(float16, PROMPT, name, 8).tokens[:4]
