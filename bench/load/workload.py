"""What a run sends: prompts, the model of each, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.arrivals import arrivals, rates
from loraplex.bench.load.mix import assign
from loraplex.bench.load.options import Adapters, Data, Traffic
from loraplex.bench.load.prompt import Message, Prompt
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.target import Target
from loraplex.bench.results.result import Request
from loraplex.bench.results.statistics import chunks

ALWAYS_FULL_LENGTH = ("random", "trace", "timed_trace")
"""Datasets whose answers shall be as long as asked for, as in vLLM."""


class Planned(Struct, frozen=True):
    """One request."""

    at: float
    """Seconds from the beginning of the run; of a later turn of a conversation, from the end of the answer before."""
    model: str
    body: bytes
    input_tokens: int
    """By the client's count; 0 where it has no tokenizer."""
    rate: float | None = None
    """Requests a second at this one, in a ramp-up."""
    request_id: str | None = None
    """For the server's logs."""
    session: str | None = None
    """The conversation, for routers that send its turns to one server; None of a request by itself."""
    turn: int = 1
    """Of the conversation."""
    then: Callable[[Request], Planned] | None = None
    """Makes the next turn of the answer to this one; None after the last."""
    left: int = 0
    """Turns after this one."""


class Workload:
    """Bodies of requests, made of the flags."""

    def __init__(self, target: Target, data: Data, sampling: Sampling, adapters: Adapters, model: str) -> None:
        """`model` is what requests ask for where no adapter is named. Raises OptionsInvalid."""
        self._chat = target.chat
        self._model = model
        self._adapters = adapters
        self._seed = data.seed
        self._request_id_prefix = data.request_id_prefix
        self._fields: dict[str, Any] = sampling.fields(target.chat)
        full_length = sampling.ignore_eos
        if full_length is None:
            full_length = data.dataset_name in ALWAYS_FULL_LENGTH
        if full_length:
            self._fields["ignore_eos"] = True
        self._fields |= {"stream": True, "stream_options": {"include_usage": True}} | target.extra

    def models(self, prompts: Sequence[Prompt]) -> list[str]:
        """What each prompt is sent to: its own model, or that of the mix. Raises OptionsInvalid."""
        mix = mix_of(self._adapters)
        if mix.startswith("split:") or self._adapters.adapters:
            mixed = assign(mix, self._adapters.adapters, len(prompts), self._seed)
        elif self._adapters.adapter_mix is not None or self._adapters.lora_assignment is not None:
            raise OptionsInvalid(f"--adapter-mix {mix} needs --adapters")
        else:
            mixed = [self._model] * len(prompts)
        return [prompt.model or model for prompt, model in zip(prompts, mixed, strict=True)]

    def plan(self, prompts: Sequence[Prompt], traffic: Traffic) -> list[Planned]:
        """In the order of time. Raises OptionsInvalid."""
        count = len(prompts)
        times = arrivals(traffic, count, self._seed)
        steps = rates(traffic, count) if traffic.ramp_up_strategy else [None] * count
        plan = [
            self._planned(prompt, model, time, step, f"{self._request_id_prefix}{number}")
            for number, (prompt, model, time, step) in enumerate(
                zip(prompts, self.models(prompts), times, steps, strict=True)
            )
        ]
        return sorted(plan, key=lambda each: each.at)

    def _planned(self, prompt: Prompt, model: str, time: float, rate: float | None, name: str) -> Planned:
        at = time if prompt.at is None else prompt.at
        if prompt.then is None:
            return Planned(at, model, self.body(prompt, model), prompt.tokens, rate, name)
        return self._turn([prompt, *prompt.then], [], Planned(at, model, b"", 0, rate, session=name))

    def _turn(self, turns: Sequence[Prompt], said: Sequence[Message], after: Planned) -> Planned:
        """The first of the turns that are left of a conversation, after the messages `said`."""
        prompt, *left = turns
        planned = msgspec.structs.replace(
            after,
            body=self.body(prompt, after.model, said),
            input_tokens=after.input_tokens + prompt.tokens,
            request_id=f"{after.session}-{after.turn}",
            left=len(left),
        )

        def then(answer: Request) -> Planned:
            heard = Message("assistant", answer.text[answer.thinking :])
            tokens = (answer.output_tokens or chunks(answer)) if prompt.tokens else 0
            return self._turn(
                left,
                [*said, *messages(prompt), heard],
                msgspec.structs.replace(
                    planned,
                    at=left[0].at or 0.0,
                    rate=None,
                    input_tokens=planned.input_tokens + tokens,
                    turn=planned.turn + 1,
                ),
            )

        return msgspec.structs.replace(planned, then=then if left else None)

    def body(self, prompt: Prompt, model: str, said: Sequence[Message] = ()) -> bytes:
        """`said` is what a conversation's earlier turns and their answers were."""
        body: dict[str, Any]
        if self._chat:
            chat = [*said, *messages(prompt)]
            body = {"model": model, "messages": chat, "max_completion_tokens": prompt.output_tokens}
        else:
            body = {"model": model, "prompt": prompt.content, "max_tokens": prompt.output_tokens}
        return msgspec.json.encode(body | self._fields)


def messages(prompt: Prompt) -> list[Message]:
    """What it adds to a chat."""
    return [*prompt.before, Message("user", str(prompt.content))]


def mix_of(adapters: Adapters) -> str:
    """The mix that the flags name, vLLM's flag among them. Raises OptionsInvalid where they differ."""
    mix, assignment = adapters.adapter_mix, adapters.lora_assignment
    if mix is not None and assignment is not None and mix != assignment:
        raise OptionsInvalid(f"--adapter-mix {mix} and --lora-assignment {assignment} exclude each other")
    return mix or assignment or "random"
