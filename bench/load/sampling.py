"""The flags that say how answers are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number


@Parameter(name="*", group="Sampling")
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Fields of every request, left out unless given: the server's defaults hold."""

    temperature: Annotated[float, Parameter(validator=Number(gte=0))] | None = None
    "0 is greedy."

    top_p: float | None = None
    "Nucleus sampling."

    top_k: int | None = None
    "Sample from so many."

    min_p: float | None = None
    "Least probability relative to the likeliest token."

    frequency_penalty: float | None = None
    "OpenAI's."

    presence_penalty: float | None = None
    "OpenAI's."

    repetition_penalty: float | None = None
    "Of tokens that were there before."

    logprobs: int | None = None
    "Log probabilities to ask for."

    ignore_eos: bool | None = None
    "Answers as long as asked for; so it is with random and trace unless told otherwise."

    def fields(self, chat: bool) -> dict[str, Any]:
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
        )
        found: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.logprobs is not None:
            found |= {"logprobs": True, "top_logprobs": self.logprobs} if chat else {"logprobs": self.logprobs}
        return found
