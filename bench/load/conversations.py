"""Conversations: random ones, and those of a file."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, field

from loraplex.bench.errors import WorkloadInvalid
from loraplex.bench.load.dataset import file_of, filled, fixed_length, needing_tokenizer, shuffled
from loraplex.bench.load.options import Data
from loraplex.bench.load.prompt import Message, Prompt
from loraplex.bench.load.random_prompts import random_prompts
from loraplex.bench.load.trace import lines
from loraplex.bench.load.turns import Turns
from loraplex.bench.load.vocabulary import Vocabulary

LATER = 2**32
"""Added to the seed for the turns after the first."""
ROLES = ("system", "developer", "user", "assistant")
SPEAKERS = {"human": "user", "user": "user", "system": "system"}
"""Roles of ShareGPT's speakers; the others are assistants of many names."""
FORMAT = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}'
FEWEST = {"sharegpt": 2, "custom": 1}
"""Turns of a conversation that is taken; vLLM's client leaves those of ShareGPT with one out."""


class Said(Struct, frozen=True):
    """A message as ShareGPT has it."""

    speaker: str = field(name="from")
    value: str

    def message(self) -> Message:
        return Message(SPEAKERS.get(self.speaker, "assistant"), self.value)


class Row(Struct, frozen=True):
    """One conversation of a file."""

    messages: list[Message] = []
    conversations: list[Said] = []
    model: str | None = None
    output_tokens: int | None = None
    """Of each answer."""


def load_conversations(data: Data, turns: Turns, vocabulary: Vocabulary | None) -> list[Prompt]:
    """The first turns of --num-prompts conversations, or of fewer where the file is not repeated.

    Raises OptionsInvalid, WorkloadInvalid.
    """
    path = file_of(data)
    if path is None:
        return _random(data, turns, needing_tokenizer(data, vocabulary))
    found = []
    for where, row in _rows(path):
        messages = row.messages or [each.message() for each in row.conversations]
        if strange := next((each.role for each in messages if each.role not in ROLES), None):
            raise WorkloadInvalid(f"{where}: role {strange!r} cannot be sent again: take {', '.join(ROLES)}")
        wanted = fixed_length(data) or row.output_tokens
        if wanted is not None and wanted < 1:
            raise WorkloadInvalid(f"{where}: output_tokens is {wanted}; write at least 1, or leave it out")
        asked = _asked(messages, wanted, data, vocabulary)[: turns.multi_turn_max_turns]
        if len(asked) >= FEWEST[data.dataset_name]:
            found.append(_conversation(msgspec.structs.replace(asked[0], model=row.model), asked[1:], turns))
    return filled(shuffled(found, data), data, path)


def _random(data: Data, turns: Turns, vocabulary: Vocabulary) -> list[Prompt]:
    first = random_prompts(data, vocabulary)
    least, most = turns.lengths
    counts = np.random.default_rng((data.seed, LATER)).integers(least, most + 1, len(first)).tolist()
    count = sum(counts) - len(first)
    later: Iterator[Prompt] = iter(())
    if count:
        length, flag = data.input_len or data.random_input_len, "--random-input-len"
        if turns.per_turn_input_len is not None:
            length, flag = turns.per_turn_input_len, "--per-turn-input-len"
        same = replace(data, num_prompts=count, input_len=length, random_prefix_len=0, seed=data.seed + LATER)
        later = iter(random_prompts(same, vocabulary, flag))
    talks = zip(first, counts, strict=True)
    return [_conversation(one, [next(later) for _ in range(turns_of_it - 1)], turns) for one, turns_of_it in talks]


def _conversation(first: Prompt, later: Sequence[Prompt], turns: Turns) -> Prompt:
    pause = turns.multi_turn_delay_ms / 1000
    return msgspec.structs.replace(first, then=tuple(msgspec.structs.replace(each, at=pause) for each in later))


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The conversations of a JSON list, or of JSON lines, with where they stand. Raises WorkloadInvalid."""
    rows = lines(path)
    what = "line"
    try:
        if rows and rows[0][1].lstrip().startswith(b"["):
            what = "entry"
            whole = msgspec.json.decode(path.read_bytes().removeprefix(BOM_UTF8), type=list[msgspec.Raw])
            rows = [(number, bytes(each)) for number, each in enumerate(whole, 1)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadInvalid(f"{path} is not a JSON list of conversations: {error}") from None
    for number, content in rows:
        where = f"{path}, {what} {number}"
        try:
            row = msgspec.json.decode(content, type=Row)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkloadInvalid(f"{where}: {error}; it is {FORMAT}") from None
        if what == "line" and not (row.messages or row.conversations):
            raise WorkloadInvalid(f"{where}: no messages; it is {FORMAT}")
        yield where, row


def _asked(messages: Sequence[Message], wanted: int | None, data: Data, vocabulary: Vocabulary | None) -> list[Prompt]:
    """What the user says, with what stands before it since the last answer, and as many tokens as the answer had unless
    `wanted` says how many. Answers before the first question are left out: they were no answers of a server.
    """
    prompts = []
    before: list[Message] = []
    for place, each in enumerate(messages):
        if each.role != "user":
            before += [each] if each.role != "assistant" and each.content else []
            continue
        following = messages[place + 1] if place + 1 < len(messages) else None
        if not each.content or (following is not None and following.role != "assistant"):
            before += [each] if each.content else []
            continue
        output_tokens = wanted
        if output_tokens is None:
            if following is None:  # whose length nobody knows
                break
            answer = needing_tokenizer(data, vocabulary, "or how many tokens to ask for").encode(following.content)
            output_tokens = max(1, len(answer))
        tokens = sum(len(vocabulary.encode(one.content)) for one in (*before, each)) if vocabulary else 0
        prompts.append(Prompt(content=each.content, tokens=tokens, output_tokens=output_tokens, before=tuple(before)))
        before = []
    return prompts
