"""What a run sends: prompts, the model of each, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.arrivals import arrivals, rates
from loraplex.bench.load.mix import assign
from loraplex.bench.load.options import Adapters, Data, Traffic
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.target import Target

ALWAYS_FULL_LENGTH = ("random", "trace", "timed_trace")
"""Datasets whose answers shall be as long as asked for, as in vLLM."""


class Planned(Struct, frozen=True):
    """One request."""

    at: float
    """Seconds from the beginning of the run."""
    model: str
    body: bytes
    input_tokens: int
    """By the client's count; 0 where it has no tokenizer."""
    rate: float | None = None
    """Requests a second at this one, in a ramp-up."""
    request_id: str | None = None
    """For the server's logs."""


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
            Planned(
                at=time if prompt.at is None else prompt.at,
                model=model,
                body=self.body(prompt, model),
                input_tokens=prompt.tokens,
                rate=step,
                request_id=f"{self._request_id_prefix}{number}",
            )
            for number, (prompt, model, time, step) in enumerate(
                zip(prompts, self.models(prompts), times, steps, strict=True)
            )
        ]
        return sorted(plan, key=lambda each: each.at)

    def body(self, prompt: Prompt, model: str) -> bytes:
        body: dict[str, Any]
        if self._chat:
            messages = [{"role": "user", "content": prompt.content}]
            body = {"model": model, "messages": messages, "max_completion_tokens": prompt.output_tokens}
        else:
            body = {"model": model, "prompt": prompt.content, "max_tokens": prompt.output_tokens}
        return msgspec.json.encode(body | self._fields)


def mix_of(adapters: Adapters) -> str:
    """The mix that the flags name, vLLM's flag among them. Raises OptionsInvalid where they differ."""
    mix, assignment = adapters.adapter_mix, adapters.lora_assignment
    if mix is not None and assignment is not None and mix != assignment:
        raise OptionsInvalid(f"--adapter-mix {mix} and --lora-assignment {assignment} exclude each other")
    return mix or assignment or "random"
