"""Traces: requests with the times at which they came, one JSON object a line.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353], "model": "travel"}

`timestamp` is in milliseconds (or in seconds, by option). `hash_ids` and `model` may be missing. This is the format of
Mooncake's traces (github.com/kvcache-ai/Mooncake, FAST25-release), where a hash id stands for a block of 512 tokens:
requests that begin with the same ids begin with the same tokens.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from loraplex.bench.errors import WorkloadInvalid
from loraplex.bench.load.options import Data
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.vocabulary import Vocabulary

BLOCK = 512
"""Tokens that one of `hash_ids` stands for."""
MILLISECONDS = 1000.0


class Arrival(Struct, frozen=True):
    """One line."""

    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=1)]
    hash_ids: list[int] = []
    model: str | None = None


def read_trace(path: Path) -> list[Arrival]:
    """In the order of time. Raises WorkloadInvalid, naming the line."""
    arrivals = []
    for number, line in lines(path):
        try:
            arrivals.append(msgspec.json.decode(line, type=Arrival))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkloadInvalid(
                f"{path}, line {number}: {error}; a line is "
                '{"timestamp": 0, "input_length": 100, "output_length": 20}, with "hash_ids" and "model" if known'
            ) from None
        found = arrivals[-1]
        if found.hash_ids and not 0 <= len(found.hash_ids) * BLOCK - found.input_length < BLOCK:
            raise WorkloadInvalid(
                f"{path}, line {number}: {len(found.hash_ids)} hash_ids do not fit an input_length of "
                f"{found.input_length}: each stands for {BLOCK} tokens, the last for what is left"
            )
    if not arrivals:
        raise WorkloadInvalid(f"{path} is empty: a trace has one request a line")
    return sorted(arrivals, key=lambda each: each.timestamp)


def trace_prompts(data: Data, path: Path, vocabulary: Vocabulary, *, timed: bool, chat: bool) -> list[Prompt]:
    """The first --num-prompts requests, as token ids, or as text for chat. The first of them comes at once."""
    arrivals = read_trace(path)[: data.num_prompts]
    scale = (MILLISECONDS if data.trace_unit == "ms" else 1.0) * data.trace_speed
    first = arrivals[0].timestamp
    prompts = []
    for index, each in enumerate(arrivals):
        tokens = _tokens(each, index, data.seed, vocabulary)
        prompts.append(
            Prompt(
                content=vocabulary.decode(tokens) if chat else tokens,
                tokens=len(tokens),
                output_tokens=each.output_length,
                model=each.model,
                at=(each.timestamp - first) / scale if timed else None,
            )
        )
    return prompts


def lines(path: Path) -> list[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers. Raises WorkloadInvalid."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WorkloadInvalid(f"{path}: {error.strerror}") from None
    content = content.removeprefix(BOM_UTF8)  # which Windows' editors write
    return [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def _tokens(arrival: Arrival, index: int, seed: int, vocabulary: Vocabulary) -> list[int]:
    if not arrival.hash_ids:
        random = np.random.default_rng((seed, 0, index))
        return list(random.choice(vocabulary.ordinary, arrival.input_length).tolist())
    tokens: list[int] = []
    for block in arrival.hash_ids:
        random = np.random.default_rng((seed, 1, abs(block), int(block < 0)))
        tokens += random.choice(vocabulary.ordinary, BLOCK).tolist()
    return tokens[: arrival.input_length]
