"""The generator lane: one og.Generator per sequence, adapters through og.Adapters.

Sequences take turns: a step gives one token to each that decodes, and computes one prefill chunk for one that does
not yet. A running stream therefore waits for at most one chunk, however many long prompts arrive.

og.Generator chooses tokens by itself. Where a request asks for what it has no option for, the lane takes its logits and
chooses as the batched lane does. `generator_model` is what all of them run on.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence as Tokens
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine import gpu
from loraplex.server.engine.forward import FindOperator
from loraplex.server.engine.generator_model import CONFIG, GeneratorModel
from loraplex.server.engine.guide import GUIDE_SECONDS, GuideInvalid, Guides, GuideState
from loraplex.server.engine.messages import Device, Finish, Output, Sampling, Submit
from loraplex.server.engine.sampler import Chooser, choose
from loraplex.server.errors import BundleInvalid

PREFILL_CHUNK = {"cpu": 128, "cuda": 1024}
"""Prompt tokens at once where the operator does not say: 128 take a 7M-parameter model some 35 ms on two cores."""

CHOOSING = frozenset(
    ("guide", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "min_tokens", "stop_tokens", "logprobs")
)
"""What og.Generator has no option for."""


class Sequence:
    """One og.Generator and where it stands. `guide` is what it has to follow, once that is compiled."""

    def __init__(
        self,
        request: Submit,
        generator: og.Generator,
        end_tokens: frozenset[int],
        guide: Future[GuideState] | None,
    ) -> None:
        self.id = request.sequence
        self.generator = generator
        self.prompt: Tokens[int] = request.prompt
        self.prefilled = 0
        self.left = request.max_tokens
        self.end_tokens = end_tokens
        self.guide = guide
        self._chooses = request.asks_for(CHOOSING) is not None
        self._sampling = request.sampling
        self._chooser: Chooser | None = None

    @property
    def waiting(self) -> bool:
        """Its guide is still being compiled."""
        return self.guide is not None and not self.guide.done()

    @property
    def decoding(self) -> bool:
        return self.prefilled == len(self.prompt)

    def prefill(self, chunk: int) -> None:
        """Compute the next `chunk` prompt tokens."""
        end = min(self.prefilled + chunk, len(self.prompt))
        self.generator.append_tokens(np.asarray(self.prompt[self.prefilled : end], np.int32))
        self.prefilled = end

    def decode(self) -> Output:
        """Generate one token. Raises GuideInvalid, ValueError where logits are not finite, RuntimeError."""
        if self._chooses:
            return self._choose()
        self.generator.generate_next_token()
        token = int(self.generator.get_next_tokens()[0])
        return Output(self.id, [token], self._count(token, self.end_tokens))

    def _choose(self) -> Output:
        if self._chooser is None:
            guide = None if self.guide is None else self.guide.result()
            self._chooser = Chooser(self._sampling, self.prompt, self.end_tokens, guide)
        chooser = self._chooser
        chooser.look_ahead()
        logits = np.array(self.generator.get_logits(), np.float32)[0, -1:]
        if not np.isfinite(logits.max()):
            raise ValueError("the model's output is not finite")
        ((token, logprobs),) = choose(logits, [chooser])
        chooser.accept(token)
        finish = self._count(token, chooser.ends)
        if finish is None:
            self.generator.append_tokens(np.array([token], np.int32))
        return Output(self.id, [token], finish, None, None if logprobs is None else [logprobs])

    def _count(self, token: int, ends: frozenset[int]) -> Finish | None:
        """Note one more token; why it is the last one, if it is."""
        self.left -= 1
        if token in ends:
            return "stop"
        return "length" if self.left == 0 else None


class GeneratorLane:
    """See the module. Owned by one thread."""

    name = "generator"
    unsupported = frozenset({"prompt_logprobs"})
    kv_tokens = None
    kv_usage = None
    places = None

    def __init__(
        self,
        folder: Path,
        *,
        device: Device,
        threads: int,
        prefill_chunk: int,
        operator: FindOperator | None = None,
    ) -> None:
        """Load the base; raises BundleInvalid with onnxruntime-genai's own reason.

        `operator` finds the library of `linear_operator`, which serves on a CPU only.
        """
        self.device = choose_device(device)
        try:
            settings = json.loads((folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        self._model = GeneratorModel(folder, device=self.device, threads=threads, operator=operator)
        end = settings["model"]["eos_token_id"]
        self._end_tokens = frozenset([end] if isinstance(end, int) else end)
        self._vocab_size: int = settings["model"]["vocab_size"]
        self._guides = Guides(folder / "tokenizer.json", self._vocab_size, self._end_tokens)
        self._prefill_chunk = prefill_chunk or PREFILL_CHUNK[self.device]
        self._prefilling: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}
        self._failed: list[Output] = []

    @property
    def busy(self) -> bool:
        return bool(self._prefilling or self._decoding or self._failed)

    def submit(self, request: Submit) -> None:
        if unknown := request.asks_for(self.unsupported):
            self._failed.append(Output(request.sequence, [], error=f"the generator engine has no {unknown}"))
            return
        try:
            generator = self._generator(request)
            guide = self._guides.begin(request.guide) if request.guide else None
            sequence = Sequence(request, generator, self._end_tokens, guide)
        except RuntimeError as error:
            self._failed.append(Output(request.sequence, [], error=str(error)))
        else:
            self._prefilling.append(sequence)

    def step(self) -> list[Output]:
        outputs, self._failed = self._failed, []
        waiting = [sequence.guide for sequence in self._decoding.values() if sequence.guide and sequence.waiting]
        if len(waiting) == len(self._decoding) and not self._prefilling:
            wait(waiting, GUIDE_SECONDS, FIRST_COMPLETED)
        for sequence in [each for each in self._decoding.values() if not each.waiting]:
            try:
                output = sequence.decode()
            except (GuideInvalid, ValueError, RuntimeError) as error:
                output = Output(sequence.id, [], error=str(error), refused=isinstance(error, GuideInvalid))
            if output.finish or output.error:
                del self._decoding[sequence.id]
            outputs.append(output)
        if self._prefilling:
            sequence = self._prefilling.popleft()
            try:
                sequence.prefill(self._prefill_chunk)
            except RuntimeError as error:
                outputs.append(Output(sequence.id, [], error=str(error)))
            else:
                if sequence.decoding:
                    self._decoding[sequence.id] = sequence
                else:
                    self._prefilling.append(sequence)
        return outputs

    def cancel(self, sequence: int) -> None:
        for found in [s for s in (*self._decoding.values(), *self._prefilling) if s.id == sequence]:
            if found.guide:
                found.guide.cancel()
        self._decoding.pop(sequence, None)
        self._prefilling = deque(s for s in self._prefilling if s.id != sequence)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        self._model.load(name, folder / manifest.file)

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Every adapter has a place of its own here."""

    def unload_adapter(self, name: str) -> None:
        self._model.unload(name)

    def _generator(self, request: Submit) -> og.Generator:
        params = og.GeneratorParams(self._model.model)
        longest = len(request.prompt) + request.max_tokens
        params.set_search_options(
            max_length=longest,
            # Below it og.Generator itself chooses no end token.
            min_length=longest if request.sampling.ignore_eos else 0,
            **_search_options(request.sampling, self._vocab_size),
        )
        generator = og.Generator(self._model.model, params)
        if request.adapter is not None:
            generator.set_active_adapter(self._model.adapters, request.adapter)
        return generator


def _search_options(sampling: Sampling, vocab_size: int) -> dict[str, float | int | bool]:
    """Every option is set, because the defaults come from the checkpoint's genai_config.json (top_k 50, for one)."""
    return {
        "batch_size": 1,
        "num_beams": 1,
        "num_return_sequences": 1,
        "no_repeat_ngram_size": 0,
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature or 1.0,
        "top_p": sampling.top_p,
        "top_k": min(sampling.top_k, vocab_size),
        "repetition_penalty": sampling.repetition_penalty,
        "random_seed": sampling.seed,
    }


def choose_device(wanted: Device) -> str:
    """Where the generator lane would run. Raises BundleInvalid where `wanted` is not to be had."""
    if wanted == "cpu":
        return "cpu"
    problem = gpu.missing()
    if wanted == "cuda" and problem:
        raise BundleInvalid(f"device cuda: {problem}")
    return "cpu" if problem else "cuda"
