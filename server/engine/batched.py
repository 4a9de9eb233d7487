"""The batched lane: sequences of different adapters in one forward pass, on CPU.

A step gives one token to every sequence that decodes, and computes one slice of one prompt, so that a running stream
waits for at most one slice.

A sequence gets a row when the KV cache has room for its prompt and its whole answer, so nothing that runs is ever put
out again; until then it waits, in turn by adapter.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import numpy as np

from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.forward import FindOperator, Forward, Logits, PassFailed
from loraplex.server.engine.guide import GUIDE_SECONDS, GuideInvalid, Guides, GuideState
from loraplex.server.engine.messages import Output, Submit
from loraplex.server.engine.row_adapters import Adapter
from loraplex.server.engine.rows import Rows
from loraplex.server.engine.sampler import Chooser, choose, logprobs
from loraplex.server.engine.turns import Sequence, Turns
from loraplex.server.machine import available_memory

LONGEST_SLICE = 256
"""Prompt tokens; more at once are no faster a token."""
SLICE_SECONDS = 0.1
"""How long running streams may wait for a slice of a prompt."""
LONGER_SLICE = 0.25
"""Of a slice by which one may be longer where that saves a pass: a few tokens cost nearly as much as many."""
EVERY_SLICE = 64
"""Prompt tokens at most where each has its logits reported: a vocabulary of 150,000 makes 38 MB of them."""
PROBE = 32
"""Tokens of the prompt that a new lane measures its speed with; fewer at once cost more a token."""


class BatchedLane:
    """See the module. Owned by one thread."""

    name = "batched"
    device = "cpu"
    unsupported: frozenset[str] = frozenset()
    places = None

    def __init__(
        self, folder: Path, *, threads: int, prefill_chunk: int, kv_bytes: int = 0, operator: FindOperator | None = None
    ) -> None:
        """Load the base.

        `prefill_chunk` 0 measures how many prompt tokens take SLICE_SECONDS, and computes so many at once. `kv_bytes`
        bounds the KV cache; 0 is half of the memory that is available then. `operator` finds the
        library of `linear_operator`. Raises BundleInvalid with onnxruntime's own reason.
        """
        self._forward = Forward(folder, threads, operator)
        self._guides = Guides(folder / "tokenizer.json", self._forward.vocab_size, self._forward.end_tokens)
        self.unsupported = frozenset() if self._forward.every_token else frozenset({"prompt_logprobs"})
        self.kv_tokens = (kv_bytes or available_memory() // 2) // self._forward.kv.token_bytes
        self._slice = prefill_chunk or min(LONGEST_SLICE, max(PROBE, int(SLICE_SECONDS * self._prefill_speed())))
        self._adapters: dict[str, Adapter] = {}
        self._compiling: dict[int, tuple[Submit, Adapter | None, Future[GuideState]]] = {}
        self._waiting = Turns()
        self._prefilling = Turns()
        self._rows = Rows(self._forward, self.kv_tokens)
        self._failed: list[Output] = []

    @property
    def kv_usage(self) -> float:
        return self._rows.reserved / max(1, self.kv_tokens)

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting or self._compiling or self._failed)

    def submit(self, request: Submit) -> None:
        try:
            self._check(request)
            adapter = self._adapters[request.adapter] if request.adapter is not None else None
        except ValueError as error:
            self._refuse(request, error)
        else:
            if request.guide:
                self._compiling[request.sequence] = request, adapter, self._guides.begin(request.guide)
            else:
                self._wait(request, adapter, None)

    def step(self) -> list[Output]:
        if self._compiling:
            self._take_guides()
        outputs, self._failed = self._failed, []
        self._admit()
        if self._rows.decoding:
            outputs += self._decode()
        if self._prefilling:
            outputs += self._prefill()
        return outputs

    def cancel(self, sequence: int) -> None:
        if compiling := self._compiling.pop(sequence, None):
            compiling[2].cancel()
        for found in [s for s in self._waiting if s.id == sequence]:
            self._waiting.remove(found)
        for found in [s for s in self._rows if s.id == sequence]:
            self._leave(found, keep=True)

    def load_adapter(self, name: str, folder: Path, manifest: AdapterManifest) -> None:
        adapter = Adapter(name, folder / manifest.file)
        self._forward.prepare(adapter)
        self._adapters[name] = adapter

    def pin_adapter(self, name: str, pinned: bool) -> None:
        """Every adapter has a place of its own here."""

    def unload_adapter(self, name: str) -> None:
        if adapter := self._adapters.pop(name, None):
            self._rows.forget(adapter)

    def _check(self, request: Submit) -> None:
        """Raises ValueError."""
        ids = [*request.prompt, *request.sampling.logit_bias, *request.sampling.stop_tokens]
        if not request.prompt or min(ids) < 0 or max(ids) >= self._forward.vocab_size:
            raise ValueError(f"token ids must be 0 .. {self._forward.vocab_size - 1}, and a prompt has at least one")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise ValueError(f"adapter {request.adapter!r} is not loaded")
        wanted = len(request.prompt) + request.max_tokens
        if wanted > self.kv_tokens:
            raise ValueError(
                f"prompt and answer may take {wanted} tokens, the KV cache has memory for {self.kv_tokens}: "
                "shorten the prompt or lower max_tokens"
            )

    def _take_guides(self) -> None:
        """Queue the sequences whose guides are compiled."""
        if not (self._rows or self._waiting or self._failed):
            wait([guide for _, _, guide in self._compiling.values()], GUIDE_SECONDS, FIRST_COMPLETED)
        for request, adapter, guide in list(self._compiling.values()):
            if not guide.done():
                continue
            del self._compiling[request.sequence]
            try:
                self._wait(request, adapter, guide.result())
            except GuideInvalid as error:
                self._refuse(request, error)

    def _wait(self, request: Submit, adapter: Adapter | None, guide: GuideState | None) -> None:
        chooser = Chooser(request.sampling, request.prompt, self._forward.end_tokens, guide)
        self._waiting.add(Sequence(request, adapter, chooser))

    def _refuse(self, request: Submit, error: Exception) -> None:
        self._failed.append(Output(request.sequence, [], error=str(error), refused=True))

    def _admit(self) -> None:
        """Give rows to waiting sequences, as far as rows and KV cache go."""
        while self._waiting and self._rows.fits(sequence := self._waiting.first()):
            self._waiting.pass_on(sequence.adapter)
            self._waiting.remove(sequence)
            self._prefilling.add(sequence)
            try:
                self._rows.join(sequence)
            except OSError as error:
                self._failed.append(self._fail(sequence, MemoryError(f"no memory for the KV cache: {error}")))

    def _prefill(self) -> list[Output]:
        """One slice of the prompt whose turn it is; its first token, if that was the last slice."""
        sequence = self._next_to_prefill()
        self._prefilling.pass_on(sequence.adapter)
        every = sequence.chooser.sampling.prompt_logprobs is not None
        if not sequence.filled and not every:
            self._rows.reuse(sequence)
        start = sequence.filled
        ids = sequence.prompt[start : start + self._slice_tokens(len(sequence.prompt) - start, every)]
        try:
            logits = self._forward.prefill(self._rows.index(sequence), ids, start, sequence.adapter, every=every)
        except PassFailed as error:
            return [self._fail(sequence, error)]
        if every:
            count = sequence.chooser.sampling.prompt_logprobs or 0
            following = sequence.prompt[start + 1 : start + len(ids) + 1]
            reports = [logprobs(row, int(token), count) for row, token in zip(logits, following, strict=False)]
            sequence.prompt_logprobs += reports
        sequence.filled += len(ids)
        if sequence.filled < len(sequence.prompt):
            return []
        self._prefilling.remove(sequence)
        self._rows.begin_decoding(sequence)
        return self._take([sequence], logits[-1:])

    def _slice_tokens(self, left: int, every: bool) -> int:
        """How many of the tokens that are left of a prompt to compute now: what is left in slices of one size."""
        slices = left / min(self._slice, EVERY_SLICE) if every else left / self._slice - LONGER_SLICE
        return math.ceil(left / max(1, math.ceil(slices)))

    def _next_to_prefill(self) -> Sequence:
        """The prompt of the adapter with the fewest streams goes first, so that a busy one does not hold up another.

        Of several, one that was begun and that this slice ends: in turn by slice, all would end as late as the last. A
        fresh one takes its turn, so that a long prompt waits for two slices of each other adapter at most.
        """
        streams = Counter(row.adapter for row in self._rows.decoding)
        return min(self._prefilling.heads(), key=lambda head: (streams[head.adapter], not self._is_almost_done(head)))

    def _is_almost_done(self, sequence: Sequence) -> bool:
        left = len(sequence.prompt) - sequence.filled
        every = sequence.chooser.sampling.prompt_logprobs is not None
        return sequence.filled > 0 and self._slice_tokens(left, every) == left

    def _decode(self) -> list[Output]:
        sequences = self._rows.decoding
        ids = np.array([sequence.answer[-1] for sequence in sequences], np.int64)
        lengths = np.array([sequence.filled + 1 for sequence in sequences], np.int64)
        adapters = [sequence.adapter for sequence in sequences]
        failed: dict[int, Exception] = {}
        try:
            logits = self._forward.decode(ids, lengths, adapters)
        except PassFailed:
            # Which row it was, onnxruntime does not say. Running a row again writes the same keys and values again.
            logits = np.full((len(ids), self._forward.vocab_size), np.nan, np.float32)
            for row in range(len(ids)):
                one = slice(row, row + 1)
                try:
                    logits[one] = self._forward.decode(ids[one], lengths[one], adapters[one], first=row)
                except PassFailed as error:
                    failed[row] = error
        outputs = [self._fail(sequences[row], error) for row, error in failed.items()]
        alive = [row for row in range(len(sequences)) if row not in failed]
        for row in alive:
            sequences[row].filled += 1
        if alive:
            outputs += self._take([sequences[row] for row in alive], logits if not failed else logits[alive])
        return outputs

    def _take(self, sequences: list[Sequence], logits: Logits) -> list[Output]:
        """Choose a token for each sequence; those that end leave."""
        failed: dict[int, Exception] = {}
        finite = np.isfinite(logits.max(axis=-1))
        for row, sequence in enumerate(sequences):
            try:
                if not finite[row]:
                    raise ValueError("the model's output is not finite")
                sequence.chooser.look_ahead()
            except (ValueError, GuideInvalid) as error:
                failed[row] = error
        outputs = [self._fail(sequences[row], error) for row, error in failed.items()]
        if failed:
            alive = [row for row in range(len(sequences)) if row not in failed]
            sequences, logits = [sequences[row] for row in alive], logits[alive]
        for sequence, choice in zip(sequences, choose(logits, [s.chooser for s in sequences]), strict=True):
            try:
                output = sequence.take(choice)
            except GuideInvalid as error:
                output = self._fail(sequence, error)
            else:
                if output.finish:
                    self._leave(sequence, keep=True)
            outputs.append(output)
        return outputs

    def _fail(self, sequence: Sequence, error: Exception) -> Output:
        self._leave(sequence, keep=False)
        return Output(sequence.id, [], error=str(error), refused=isinstance(error, GuideInvalid))

    def _leave(self, sequence: Sequence, *, keep: bool) -> None:
        """Free the sequence's row; if `keep`, its KV stays for a prompt that begins the same."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        current = sequence.adapter is None or self._adapters.get(sequence.adapter.name) is sequence.adapter
        self._rows.leave(sequence, keep=keep and current)

    def _prefill_speed(self) -> float:
        """Prompt tokens a second, of a base without adapter."""
        self._forward.reserve(1, PROBE, ())
        ids = np.zeros(PROBE, np.int64)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            self._forward.prefill(0, ids, 0, None)
            seconds.append(time.perf_counter() - start)
        self._forward.release()
        return PROBE / min(seconds)
