"""Bundles to run lanes on, and what drives a lane through its messages alone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from loraplex.server.bundle import Bundle
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Output, Sampling, Submit
from tests.checkpoints import make_adapter, reference_tokens

GREEDY = Sampling(temperature=0)
EOS = 1
L = TypeVar("L", BatchedLane, GeneratorLane)


@dataclass(frozen=True)
class Model:
    """A bundle with what it was made from: the checkpoint and PEFT folders by adapter name."""

    bundle: Bundle
    checkpoint: Path
    peft: dict[str, Path]

    def expected(self, adapter: str | None, prompt: tuple[int, ...], count: int) -> list[int]:
        """PEFT's greedy answer, ended by EOS."""
        tokens = list(_reference(self, adapter, prompt, count))
        return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens

    def __hash__(self) -> int:
        return hash(self.bundle.folder)


@functools.cache
def _reference(model: Model, adapter: str | None, prompt: tuple[int, ...], count: int) -> list[int]:
    return reference_tokens(model.checkpoint, model.peft[adapter] if adapter else None, prompt, count)


def build(checkpoint: Path, folder: Path, precision: Literal["float32", "int4"]) -> Model:
    """A bundle with three adapters: ranks 4 and 9 on everything, and a pattern of ranks on some projections."""
    from loraplex.build.assembly import build_bundle

    packed = "phi3" in (checkpoint / "config.json").read_text()
    some, pattern = (["qkv_proj", "down_proj"], {"down_proj": 6}) if packed else (["v_proj", "up_proj"], {"up_proj": 6})
    peft = {
        "four": make_adapter(checkpoint, folder / "four", rank=4, seed=1),
        "nine": make_adapter(checkpoint, folder / "nine", rank=9, alpha=6, seed=2),
        "some": make_adapter(checkpoint, folder / "some", rank=3, targets=some, rank_pattern=pattern, seed=3),
    }
    bundle = build_bundle(checkpoint, peft, folder / "bundle", name="tiny", precision=precision)
    return Model(bundle, checkpoint, peft)


def batched(model: Model, **options: Any) -> BatchedLane:
    """A batched lane with every adapter loaded."""
    options = {"threads": 1, "prefill_chunk": 8} | options
    return _load(BatchedLane(model.bundle.variant("generator"), **options), model)


def generator(model: Model, **options: Any) -> GeneratorLane:
    """A generator lane with every adapter loaded, on onnxruntime's operators unless `operator` finds another."""
    options = {"threads": 1, "prefill_chunk": 8} | options
    return _load(GeneratorLane(model.bundle.variant("generator"), device="cpu", **options), model)


def _load(lane: L, model: Model) -> L:
    for name in model.bundle.manifest.adapters:
        folder = model.bundle.adapter(name)
        lane.load_adapter(name, folder, check_adapter(folder, model.bundle.manifest.base))
    return lane


@dataclass
class Answer:
    """What one sequence gave."""

    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    cached: int = 0
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None

    def add(self, output: Output) -> None:
        assert self.finish is None, "nothing follows the last output"
        assert self.error is None, "nothing follows the last output"
        self.tokens += output.tokens
        self.cached += output.cached
        self.logprobs += output.logprobs or []
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "they come once"
            self.prompt_logprobs = output.prompt_logprobs
        self.finish, self.error = output.finish, output.error


def run(lane: Lane, requests: Iterable[Submit], cancels: Mapping[int, int] | None = None) -> dict[int, Answer]:
    """Submit everything, cancel sequence n before step cancels[n], and step until nothing is left."""
    answers = {}
    for request in requests:
        answers[request.sequence] = Answer()
        lane.submit(request)
    step = 0
    while lane.busy:
        for sequence in (n for n, at in (cancels or {}).items() if at == step):
            lane.cancel(sequence)
        for output in lane.step():
            answers[output.sequence].add(output)
        step += 1
        assert step < 10_000, "the lane does not come to an end"
    return answers


def ask(lane: Lane, prompt: Iterable[int], adapter: str | None = None, max_tokens: int = 16, **options: Any) -> Answer:
    """The answer to one greedy request, or with the given sampling."""
    sampling = options.pop("sampling", GREEDY)
    return run(lane, [Submit(0, adapter, list(prompt), max_tokens, sampling, **options)])[0]
