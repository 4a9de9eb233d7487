"""How a request wants its tokens chosen, in the engine's terms; what the running lane cannot do is refused."""

from __future__ import annotations

import secrets

import msgspec

from loraplex.server.api.schema import Generate
from loraplex.server.engine.messages import Sampling
from loraplex.server.errors import InvalidRequest, UnsupportedParameter
from loraplex.server.model import Model
from loraplex.server.serving import Serving

SEEDS = 2**31
"""The engine takes 31 bits."""

_WIRE_NAMES = {"stop_tokens": "stop_token_ids", "guide": "response_format"}
"""What clients call a thing that the engine calls otherwise."""


def sampling(server: Serving, request: Generate, model: Model, *, logprobs: int | None) -> Sampling:
    """How the first choice is sampled: the request's word first, then the adapter's, the base's and OpenAI's defaults.

    Raises InvalidRequest and UnsupportedParameter.
    """

    def pick(name: str, default: float) -> float:
        for source in (request, *model.sampling):
            if (value := getattr(source, name)) is not None:
                return float(value)
        return default

    found = Sampling(
        temperature=pick("temperature", 1.0),
        top_p=pick("top_p", 1.0),
        top_k=max(0, int(pick("top_k", 0))),
        repetition_penalty=pick("repetition_penalty", 1.0),
        seed=secrets.randbelow(SEEDS) if request.seed is None else request.seed % SEEDS,
        min_p=request.min_p or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        min_tokens=request.min_tokens or 0,
        stop_tokens=request.stop_token_ids or [],
        ignore_eos=request.ignore_eos or False,
        logprobs=logprobs,
        seed_given=request.seed is not None,
    )
    vocab_size = server.bundle.manifest.base.vocab_size
    for name, tokens in (("logit_bias", found.logit_bias), ("stop_token_ids", found.stop_tokens)):
        wrong = next((token for token in tokens if token >= vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(f"{name}: token id {wrong} is out of range: ids are 0 to {vocab_size - 1}", param=name)
    plain = Sampling()
    for name in sorted(server.engine.unsupported - {"guide"}):
        if getattr(found, name) != getattr(plain, name):
            raise unsupported(server, name)
    return found


def for_choice(first: Sampling, choice: int) -> Sampling:
    """The sampling of choice `choice` of `n`: the same, with a seed of its own that follows from the first's."""
    return msgspec.structs.replace(first, seed=(first.seed + choice) % SEEDS) if choice else first


def hidden_tokens(request: Generate, otherwise: frozenset[int] | None = None) -> frozenset[int] | None:
    """The tokens that have no text in an answer; None for every special one."""
    return frozenset() if request.skip_special_tokens is False else otherwise


def unsupported(server: Serving, name: str, param: str | None = None) -> UnsupportedParameter:
    """The refusal of a field that the running lane cannot honour."""
    param = param or _WIRE_NAMES.get(name, name)
    lane = server.engine.started.lane if server.engine.started else "running"
    return UnsupportedParameter(f"{param} is not supported by the {lane} engine: leave it out", param=param)
