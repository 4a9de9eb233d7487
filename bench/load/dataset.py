"""Prompts from the dataset that the flags name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.bench.errors import OptionsInvalid, WorkloadInvalid
from loraplex.bench.load.options import Data
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.random_prompts import prefix_repetition, random_prompts
from loraplex.bench.load.trace import lines, trace_prompts
from loraplex.bench.load.vocabulary import Vocabulary

SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048
"""Tokens: conversations outside these bounds are left out, as vLLM's `is_valid_sequence` does."""
FROM_FILE = ("sharegpt", "custom", "trace", "timed_trace")


class CustomLine(Struct, frozen=True):
    prompt: str
    output_tokens: int | None = None
    model: str | None = None


class Turn(Struct, frozen=True):
    value: str


class Conversation(Struct, frozen=True):
    conversations: list[Turn] = []


def load_prompts(data: Data, vocabulary: Vocabulary | None, *, timed: bool, chat: bool) -> list[Prompt]:
    """As many as --num-prompts, or fewer where the dataset is not repeated. Raises OptionsInvalid, WorkloadInvalid."""
    name, path = data.dataset_name, data.dataset_path
    if name in FROM_FILE and path is None:
        raise OptionsInvalid(f"--dataset-name {name} needs --dataset-path")
    if name not in FROM_FILE and path is not None:
        raise OptionsInvalid(f"--dataset-name {name} has no file: leave out --dataset-path, or name one that has")
    if name == "custom":
        assert path is not None
        return _filled(_custom(data, path, vocabulary), data, path)
    if name == "sharegpt":
        assert path is not None
        return _filled(_sharegpt(data, path, vocabulary), data, path)
    if vocabulary is None:
        raise OptionsInvalid(f"--dataset-name {name} needs a tokenizer: give --tokenizer")
    if name == "random":
        return random_prompts(data, vocabulary)
    if name == "prefix_repetition":
        return prefix_repetition(data, vocabulary)
    assert path is not None
    return trace_prompts(data, path, vocabulary, timed=timed, chat=chat)


def _custom(data: Data, path: Path, vocabulary: Vocabulary | None) -> list[Prompt]:
    """JSON lines with a `prompt`, which is sent as it is, and `output_tokens` and `model` where they have them."""
    wanted = data.output_len or data.custom_output_len
    if not wanted:
        raise OptionsInvalid("--custom-output-len 0 asks for nothing: give 1 or more, or -1 for each line's own")
    prompts = []
    for number, line in lines(path):
        try:
            row = msgspec.json.decode(line, type=CustomLine)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkloadInvalid(f'{path}, line {number}: {error}; a line is {{"prompt": "..."}}') from None
        output_tokens = row.output_tokens if wanted == -1 else wanted
        if not output_tokens or output_tokens < 1:
            reason = "no output_tokens" if row.output_tokens is None else f"output_tokens is {row.output_tokens}"
            raise WorkloadInvalid(f"{path}, line {number}: {reason}; write at least 1, or give --custom-output-len")
        tokens = len(vocabulary.encode(row.prompt, special=True)) if vocabulary else 0
        prompts.append(Prompt(content=row.prompt, tokens=tokens, output_tokens=output_tokens, model=row.model))
    return _shuffled(prompts, data)


def _sharegpt(data: Data, path: Path, vocabulary: Vocabulary | None) -> list[Prompt]:
    """A JSON list of conversations; the first turn is the prompt, the second the answer whose length is asked for."""
    try:
        found: list[Any] = msgspec.json.decode(path.read_bytes(), type=list[Any])
    except OSError as error:
        raise WorkloadInvalid(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadInvalid(f"{path} is not a JSON list of conversations: {error}") from None
    wanted = data.output_len or data.sharegpt_output_len
    if vocabulary is None and wanted is None:
        raise OptionsInvalid("--dataset-name sharegpt needs --tokenizer, or --sharegpt-output-len")
    conversations = []
    for number, entry in enumerate(found, 1):
        try:
            row = msgspec.convert(entry, Conversation)
        except msgspec.ValidationError as error:
            raise WorkloadInvalid(
                f"{path}, entry {number}: {error}; an entry is "
                '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'
            ) from None
        if len(row.conversations) >= 2:
            conversations.append(row.conversations)
    prompts: list[Prompt] = []
    for question, answer, *_ in _shuffled(conversations, data):
        if len(prompts) == data.num_prompts:
            break
        tokens = len(vocabulary.encode(question.value, special=True)) if vocabulary else 0
        output_tokens = wanted or (len(vocabulary.encode(answer.value, special=True)) if vocabulary else 0)
        fits = SHORTEST <= tokens <= LONGEST_PROMPT and tokens + output_tokens <= LONGEST
        if vocabulary is None or (fits and (wanted or output_tokens >= SHORTEST)):
            prompts.append(Prompt(content=question.value, tokens=tokens, output_tokens=output_tokens))
    return prompts


def _shuffled(rows: list[Any], data: Data) -> list[Any]:
    return rows if data.disable_shuffle else random.Random(data.seed).sample(rows, len(rows))


def _filled(prompts: list[Prompt], data: Data, path: Path) -> list[Prompt]:
    """Cut to --num-prompts, or filled up to it by prompts drawn again."""
    if not prompts:
        raise WorkloadInvalid(f"{path} has no prompt that can be sent: give another file")
    missing = data.num_prompts - len(prompts)
    if missing > 0 and not data.no_oversample:
        prompts = prompts + random.Random(data.seed).choices(prompts, k=missing)
    return prompts[: data.num_prompts]
