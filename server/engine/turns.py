"""What the batched lane runs, and in which order sequences get their turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import numpy as np

from loraplex.server.engine.messages import Finish, Logprobs, Output, Submit
from loraplex.server.engine.prefix import Ids
from loraplex.server.engine.row_adapters import Adapter
from loraplex.server.engine.sampler import Choice, Chooser


class Sequence:
    """One sequence. `filled` of its tokens, prompt and answer, are in the KV cache."""

    def __init__(self, request: Submit, adapter: Adapter | None, chooser: Chooser) -> None:
        self.id = request.sequence
        self.adapter = adapter
        self.chooser = chooser
        self.prompt = np.asarray(request.prompt, np.int64)
        self.answer: list[int] = []
        self.max_tokens = request.max_tokens
        self.longest = len(request.prompt) + request.max_tokens
        self.filled = 0
        self.cached = 0
        self.prompt_logprobs: list[Logprobs] = []

    @property
    def tokens(self) -> Ids:
        """The tokens in the KV cache."""
        return np.concatenate([self.prompt, np.asarray(self.answer, np.int64)])[: self.filled]

    def take(self, choice: Choice) -> Output:
        """The chosen token as output. Raises GuideInvalid."""
        self.chooser.accept(choice.token)
        self.answer.append(choice.token)
        finish: Finish | None = None
        if choice.token in self.chooser.ends:
            finish = "stop"
        elif len(self.answer) == self.max_tokens:
            finish = "length"
        logprobs = None if choice.logprobs is None else [choice.logprobs]
        if len(self.answer) > 1:
            return Output(self.id, [choice.token], finish, None, logprobs)
        of_prompt = None if self.chooser.sampling.prompt_logprobs is None else self.prompt_logprobs
        return Output(self.id, [choice.token], finish, None, logprobs, self.cached, prompt_logprobs=of_prompt)


class Turns:
    """Sequences in turn by adapter; those of one adapter in the order they came."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Adapter | None, deque[Sequence]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for queue in self._queues.values() for sequence in queue)

    def add(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.adapter, deque()).append(sequence)

    def first(self) -> Sequence:
        """Whose turn it is."""
        return next(iter(self._queues.values()))[0]

    def heads(self) -> list[Sequence]:
        """The first sequence of each adapter, in turn."""
        return [queue[0] for queue in self._queues.values()]

    def pass_on(self, adapter: Adapter | None) -> None:
        """This adapter has had its turn."""
        self._queues.move_to_end(adapter)

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.adapter]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.adapter]
