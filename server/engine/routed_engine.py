"""One og.Engine over a routed model folder, and the sequences that run in it."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og

from loraplex.server.engine.linker import CONFIG, Linked
from loraplex.server.engine.lora_operator import Bank
from loraplex.server.engine.messages import Finish, Output, Submit
from loraplex.server.engine.routed_sequence import Sequence, is_greedy, seed
from loraplex.server.engine.routing import tag
from loraplex.server.engine.slots import Adapter, Slots
from loraplex.server.engine.warmup import WarmUp

logger = logging.getLogger("loraplex.routed")

_TOKEN = og.EngineEventFlags.TOKEN.value
_FAILED = og.EngineEventFlags.FAILED.value
_FINISHED = og.EngineEventFlags.TURN_FINISHED.value
_FATAL = (og.EngineErrorCode.ENGINE_CONTRACT_FAILURE, og.EngineErrorCode.ENGINE_EXECUTION_FAILURE)
_GUIDES = {"json_schema": "json_schema", "regex": "regex", "grammar": "lark_grammar"}
UNSUPPORTED = frozenset(("min_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "prompt_logprobs"))
"""Fields of Sampling that og.Engine has no option for."""
BLOCK = 256
"""Tokens to a block of the KV cache."""


@dataclass(frozen=True)
class EngineOptions:
    """How an og.Engine is set up. All but `max_batch_size` concern CUDA alone."""

    max_batch_size: int = 64
    """Sequences in one step, at most 256; more wait inside the engine."""
    kv_bytes: int = 0
    """Memory for keys and values; 0 takes `kv_memory` of the GPU memory that is free when the cache is made."""
    kv_memory: float = 0.4
    """Under half, so that a second engine finds room beside the first while adapters are swapped."""
    prefix_cache: bool = True
    cuda_graphs: bool = True
    max_scheduled_tokens: int = 2048
    """Tokens in one step, prompts and answers together: what a running stream may have to wait for."""
    session: Mapping[str, str] = field(default_factory=dict)
    """More session options of onnxruntime."""


def _dynamic_batching(options: EngineOptions, decoder: Mapping[str, int]) -> dict[str, float | bool]:
    # Two float16 numbers for each KV head and dimension in each layer, the routing layer included.
    block = 2 * 2 * BLOCK * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    kv = {"num_blocks": max(1, options.kv_bytes // block)} if options.kv_bytes else {}
    return {
        "max_batch_size": options.max_batch_size,
        "max_scheduled_tokens": options.max_scheduled_tokens,
        "prefix_caching": options.prefix_cache,
        **(kv or {"gpu_utilization_factor": options.kv_memory}),
    }


class RoutedEngine:
    """Owned by one thread."""

    def __init__(
        self, linked: Linked, adapters: Sequence_[Adapter], device: str, threads: int, options: EngineOptions
    ) -> None:
        """Load the model; raises RuntimeError with onnxruntime-genai's own reason, out of memory for one.

        `adapters` are those that were linked, in the order of their slots.
        """
        self.linked = linked
        self.slots = Slots(linked.count, linked.vocab_size)
        for adapter in adapters:
            self.slots.take(adapter, (), {})
        self.running: dict[int, Sequence] = {}
        settings = json.loads((linked.folder / CONFIG).read_text("utf-8"))
        decoder = settings["model"]["decoder"]
        end = settings["model"]["eos_token_id"]
        self._end_token: int = end if isinstance(end, int) else end[0]
        self._dynamic = device == "cuda"
        config = og.Config(str(linked.folder))
        config.clear_providers()
        session: dict[str, Any] = {"intra_op_num_threads": threads, **options.session}
        if device == "cuda":
            config.append_provider("cuda")
            config.set_provider_option("cuda", "enable_cuda_graph", "1" if options.cuda_graphs else "0")
            batching = {"dynamic_batching": _dynamic_batching(options, decoder)}
        else:
            batching = {"static_batching": {"max_batch_size": options.max_batch_size}}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}, "engine": batching}))
        self._engine = og.Engine(og.Model(config))
        self._bank: Bank | None = None
        if linked.layout is not None and linked.layout.branches:
            self._bank = Bank(linked.folder / decoder["session_options"]["custom_ops_library"])
        self._warm_up: WarmUp | None = None
        if device == "cuda" and options.cuda_graphs:
            longest = settings["model"]["context_length"]
            longest = min(longest, self._engine.get_capabilities().max_request_length or longest)  # 0 is no limit
            if blocks := batching["dynamic_batching"].get("num_blocks"):
                longest = min(longest, BLOCK * int(blocks))
            self._warm_up = WarmUp(options.max_batch_size, BLOCK, longest)
        self._buffer = self._engine.create_event_buffer(4 * options.max_batch_size)
        self._handles: dict[int, Any] = {}
        self._ids: dict[Any, int] = {}

    def write(
        self,
        adapter: Adapter,
        packed: npt.NDArray[np.float16],
        used: Mapping[Adapter, int],
        keep: Collection[Adapter] = (),
    ) -> bool:
        """Give a slot to an adapter, packed by the layout of `linked`; False where running sequences use all of them.

        Adapters to `keep` are as good as running. Raises RuntimeError where the weights cannot be copied.
        """
        if (slot := self.slots.take(adapter, {*self.busy_adapters(), *keep}, used)) is None:
            return False
        if self._bank:
            try:
                self._bank.write(slot, packed)
            except RuntimeError:
                self.slots.leave(adapter)
                raise
        return True

    def allocate(self) -> npt.NDArray[np.float16]:
        """Host memory to pack an adapter in for `write`, from the engine's own thread."""
        assert self._bank is not None
        return self._bank.allocate()

    def busy_adapters(self) -> Counter[Adapter]:
        """The adapters of running sequences, with how many each has."""
        return Counter(sequence.adapter for sequence in self.running.values() if sequence.adapter)

    def begin(self, sequence: Sequence) -> None:
        """Run a sequence, from its prompt and what it has generated; its adapter has a slot. Ends a warm-up.

        Raises RuntimeError for options out of range.
        """
        self.stop_warm_up()
        self._begin(sequence)

    @property
    def cold(self) -> bool:
        """Whether there are CUDA graphs to capture."""
        return self._warm_up is not None and not self._warm_up.done

    @property
    def warming(self) -> bool:
        """Whether what runs is a warm-up."""
        return any(number < 0 for number in self.running)

    def warm_up(self) -> str:
        """One step of capturing CUDA graphs, while nothing else runs. Returns how far it came; the last logs it.

        Where the engine refuses a sequence no more are captured ahead. Raises RuntimeError as `run` does.
        """
        assert self._warm_up is not None
        warm_up, since = self._warm_up, time.monotonic()
        problem = self._warm_up_step(warm_up)
        warm_up.seconds += time.monotonic() - since
        if problem is not None:
            logger.warning("CUDA graphs captured: %s, no more before they are needed: %s", warm_up.progress, problem)
            self.stop_warm_up()
            self._warm_up = None
        elif warm_up.done:
            logger.info("CUDA graphs captured: %s", warm_up.progress)
        return warm_up.progress

    def _warm_up_step(self, warm_up: WarmUp) -> str | None:
        """Begin the next sequences, unless some run, and run a step. Returns why the engine refused one, if it did."""
        if not self.running:
            try:
                for request in warm_up.begin():
                    self._begin(Sequence(request, None))
            except RuntimeError as error:
                return str(error)
        outputs = self.run()
        for output in outputs:
            if output.finish:
                warm_up.end()
        return next((output.error for output in outputs if output.error), None)

    def stop_warm_up(self) -> None:
        """Drop the sequences of a warm-up."""
        for number in [number for number in self.running if number < 0]:
            self.close(number)

    def _begin(self, sequence: Sequence) -> None:
        request, done = sequence.request, len(sequence.tokens)
        sequence.before = done
        prompt = [*request.prompt, *sequence.tokens]
        if sequence.adapter:
            prompt = tag(prompt, self.slots.number(sequence.adapter), self.linked.vocab_size)
        limits = og.RequestOptions()
        limits.set_max_session_tokens(len(request.prompt) + request.max_tokens)
        handle = self._engine.create_request(options=limits)
        handle.begin_turn(np.asarray(prompt, np.int32), self._turn(handle, request, done))
        self.running[request.sequence] = sequence
        self._handles[request.sequence] = handle
        self._ids[handle] = request.sequence

    def run(self) -> list[Output]:
        """One step of everything that runs, which is a warm-up or what was asked for.

        Raises RuntimeError where the engine cannot go on at all: it would refuse whatever comes from then on.
        """
        tokens: dict[int, list[int]] = {}
        ends: dict[int, Output] = {}
        for event in self._engine.run(self._buffer):
            flags = event.flags.value
            if flags & _FAILED and event.error_code in _FATAL:
                raise RuntimeError(f"the engine cannot go on: {event.error_code.name.lower()}")
            # An event of a sequence that was closed meanwhile finds no entry.
            if (number := self._ids.get(event.request)) is None or number in ends:
                continue
            gained = tokens.setdefault(number, [])
            if flags & _TOKEN:
                gained.append(event.token)
                self.running[number].tokens.append(event.token)
                if self._stops(self.running[number], event.token):
                    ends[number] = Output(number, gained, "stop")
                    continue
            if flags & _FAILED:
                ends[number] = Output(number, gained, error=f"the engine failed: {event.error_code.name.lower()}")
            elif flags & _FINISHED:
                finish: Finish = "length"
                if event.finish_reason == og.FinishReason.EOS:
                    # The engine keeps an end token to itself; every lane hands on the token that ended a sequence.
                    gained.append(self._end_token)
                    finish = "stop"
                ends[number] = Output(number, gained, finish, cached=event.usage.cached_prompt_tokens)
        for number in ends:
            self.close(number)
        return [
            ends.get(number) or Output(number, gained) for number, gained in tokens.items() if number in ends or gained
        ]

    def close(self, number: int) -> Sequence | None:
        """Drop a sequence and free its memory; None where it does not run here."""
        if (handle := self._handles.pop(number, None)) is None:
            return None
        del self._ids[handle]
        handle.close()
        return self.running.pop(number)

    def take_all(self) -> list[Sequence]:
        """Drop all sequences and return them, oldest first."""
        self.stop_warm_up()
        return [sequence for number in list(self.running) if (sequence := self.close(number))]

    def take_willing(self) -> list[Sequence]:
        """As `take_all`, but for those that do not give way."""
        self.stop_warm_up()
        numbers = [number for number, each in self.running.items() if each.gives_way]
        return [sequence for number in numbers if (sequence := self.close(number))]

    def take(self, adapter: Adapter) -> list[Sequence]:
        """Drop an adapter's sequences, but for those that do not give way, and return them, oldest first."""
        numbers = [number for number, each in self.running.items() if each.adapter == adapter and each.gives_way]
        return [sequence for number in numbers if (sequence := self.close(number))]

    def _turn(self, handle: Any, request: Submit, done: int) -> Any:
        """Every option is set, because the defaults come from the checkpoint's genai_config.json.

        But for those that the engine refuses beside a choice of the likeliest token as a contradiction.
        """
        sampling, left = request.sampling, request.max_tokens - done
        turn = og.TurnOptions(handle)
        turn.set_max_generated_tokens(left)
        turn.set_min_generated_tokens(left if sampling.ignore_eos else max(0, sampling.min_tokens - done))
        greedy = is_greedy(sampling)
        turn.set_do_sample(not greedy)
        turn.set_top_p(sampling.top_p)
        if not greedy:
            turn.set_temperature(sampling.temperature)
            turn.set_top_k(min(sampling.top_k, self.linked.vocab_size))
        turn.set_repetition_penalty(sampling.repetition_penalty)
        turn.set_no_repeat_ngram_size(0)
        if self._dynamic:
            turn.set_seed(seed(sampling, done))
        if request.guide is not None:
            turn.set_guidance(_GUIDES[request.guide.kind], request.guide.text)
        return turn

    @staticmethod
    def _stops(sequence: Sequence, token: int) -> bool:
        sampling = sequence.request.sampling
        return token in sampling.stop_tokens and len(sequence.tokens) > sampling.min_tokens
