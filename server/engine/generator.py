"""The generator lane: one og.Generator per sequence, adapters through og.Adapters.

Sequences take turns: a step gives one token to each that decodes, and computes one prefill chunk for one that does
not yet. A running stream therefore waits for at most one chunk, however many long prompts arrive.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence as Tokens
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.messages import Device, Finish, Output, Sampling, Submit
from loraplex.server.errors import AdapterInvalid, BundleInvalid

CONFIG = "genai_config.json"
PREFILL_CHUNK = {"cpu": 128, "cuda": 1024}
"""Prompt tokens at once where the operator does not say: 128 take a 7M-parameter model some 35 ms on two cores."""

_BATCHED_ONLY = (
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "min_tokens",
    "stop_tokens",
    "logprobs",
    "prompt_logprobs",
)
"""Fields of Sampling that og.Generator has no option for."""


class Sequence:
    """One og.Generator and where it stands."""

    def __init__(self, request: Submit, generator: og.Generator, end_tokens: frozenset[int]) -> None:
        self.id = request.sequence
        self.generator = generator
        self.prompt: Tokens[int] = request.prompt
        self.prefilled = 0
        self.left = request.max_tokens
        self.end_tokens = end_tokens

    @property
    def decoding(self) -> bool:
        return self.prefilled == len(self.prompt)

    def prefill(self, chunk: int) -> None:
        """Compute the next `chunk` prompt tokens."""
        end = min(self.prefilled + chunk, len(self.prompt))
        self.generator.append_tokens(np.asarray(self.prompt[self.prefilled : end], np.int32))
        self.prefilled = end

    def decode(self) -> Output:
        """Generate one token."""
        self.generator.generate_next_token()
        token = int(self.generator.get_next_tokens()[0])
        self.left -= 1
        finish: Finish | None = None
        if token in self.end_tokens:
            finish = "stop"
        elif self.left == 0:
            finish = "length"
        return Output(self.id, [token], finish)


class GeneratorLane:
    """See the module. Owned by one thread."""

    name = "generator"
    unsupported = frozenset((*_BATCHED_ONLY, "guide"))
    kv_tokens = None
    kv_usage = None

    def __init__(self, folder: Path, *, device: Device, threads: int, prefill_chunk: int) -> None:
        """Load the base; raises BundleInvalid with onnxruntime-genai's own reason."""
        self.device = choose_device(device)
        try:
            settings = json.loads((folder / CONFIG).read_text("utf-8"))
            config = og.Config(str(folder))
            config.clear_providers()
            if self.device == "cuda":
                config.append_provider("cuda")
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
            self._model = og.Model(config)
        except (OSError, ValueError, RuntimeError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        end = settings["model"]["eos_token_id"]
        self._end_tokens = frozenset([end] if isinstance(end, int) else end)
        self._vocab_size: int = settings["model"]["vocab_size"]
        self._adapters = og.Adapters(self._model)
        self._loaded: set[str] = set()
        self._prefill_chunk = prefill_chunk or PREFILL_CHUNK[self.device]
        self._prefilling: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}
        self._failed: list[Output] = []

    @property
    def busy(self) -> bool:
        return bool(self._prefilling or self._decoding or self._failed)

    def submit(self, request: Submit) -> None:
        if unknown := _cannot(request):
            self._failed.append(Output(request.sequence, [], error=f"the generator engine has no {unknown}"))
            return
        try:
            sequence = Sequence(request, self._generator(request), self._end_tokens)
        except RuntimeError as error:
            self._failed.append(Output(request.sequence, [], error=str(error)))
        else:
            self._prefilling.append(sequence)

    def step(self) -> list[Output]:
        outputs, self._failed = self._failed, []
        for sequence in list(self._decoding.values()):
            try:
                output = sequence.decode()
            except RuntimeError as error:
                output = Output(sequence.id, [], error=str(error))
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
        self._decoding.pop(sequence, None)
        self._prefilling = deque(s for s in self._prefilling if s.id != sequence)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        try:
            self._adapters.load(str(folder / manifest.file), name)
        except RuntimeError as error:
            raise AdapterInvalid(f"adapter {name!r}: {error}") from None
        self._loaded.add(name)

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Every adapter has a place of its own here."""

    def unload_adapter(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.remove(name)
            self._adapters.unload(name)

    def _generator(self, request: Submit) -> og.Generator:
        params = og.GeneratorParams(self._model)
        longest = len(request.prompt) + request.max_tokens
        params.set_search_options(
            max_length=longest,
            # Below it og.Generator chooses no end token.
            min_length=longest if request.sampling.ignore_eos else 0,
            **_search_options(request.sampling, self._vocab_size),
        )
        generator = og.Generator(self._model, params)
        if request.adapter is not None:
            generator.set_active_adapter(self._adapters, request.adapter)
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


def _cannot(request: Submit) -> str | None:
    """The first thing asked for that og.Generator does not do."""
    if request.guide is not None:
        return "guide"
    plain = Sampling()
    return next((name for name in _BATCHED_ONLY if getattr(request.sampling, name) != getattr(plain, name)), None)


def choose_device(wanted: Device) -> str:
    """Where the generator lane would run. Raises BundleInvalid where `wanted` is not to be had."""
    available = og.is_cuda_available()
    if wanted == "cuda" and not available:
        raise BundleInvalid("device cuda: this onnxruntime-genai has no CUDA; install loraplex[cuda]")
    return "cuda" if available and wanted != "cpu" else "cpu"
