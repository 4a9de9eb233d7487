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
    name, path = data.dataset_name, file_of(data)
    if name == "custom":
        assert path is not None
        return filled(_custom(data, path, vocabulary), data, path)
    if name == "sharegpt":
        assert path is not None
        return filled(_sharegpt(data, path, vocabulary), data, path)
    vocabulary = needing_tokenizer(data, vocabulary)
    if name == "random":
        return random_prompts(data, vocabulary)
    if name == "prefix_repetition":
        return prefix_repetition(data, vocabulary)
    assert path is not None
    return trace_prompts(data, path, vocabulary, timed=timed, chat=chat)


def file_of(data: Data) -> Path | None:
    """None of a dataset that has none. Raises OptionsInvalid."""
    name, path = data.dataset_name, data.dataset_path
    if name in FROM_FILE and path is None:
        raise OptionsInvalid(f"--dataset-name {name} needs --dataset-path")
    if name not in FROM_FILE and path is not None:
        raise OptionsInvalid(f"--dataset-name {name} has no file: leave out --dataset-path, or name one that has")
    return path


def needing_tokenizer(data: Data, vocabulary: Vocabulary | None, otherwise: str = "") -> Vocabulary:
    """Raises OptionsInvalid where there is none; `otherwise` is what could be given instead."""
    if vocabulary is None:
        instead = f", or {otherwise}" if otherwise else ""
        raise OptionsInvalid(f"--dataset-name {data.dataset_name} needs a tokenizer: give --tokenizer{instead}")
    return vocabulary


def fixed_length(data: Data) -> int | None:
    """Tokens to ask for of every prompt of a file; None leaves that to the file. Raises OptionsInvalid."""
    if data.dataset_name == "sharegpt":
        return data.output_len or data.sharegpt_output_len
    wanted = data.output_len or data.custom_output_len
    if not wanted:
        raise OptionsInvalid("--custom-output-len 0 asks for nothing: give 1 or more, or -1 for each line's own")
    return None if wanted == -1 else wanted


def _custom(data: Data, path: Path, vocabulary: Vocabulary | None) -> list[Prompt]:
    """JSON lines with a `prompt`, which is sent as it is, and `output_tokens` and `model` where they have them."""
    wanted = fixed_length(data)
    prompts = []
    for number, line in lines(path):
        try:
            row = msgspec.json.decode(line, type=CustomLine)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkloadInvalid(
                f'{path}, line {number}: {error}; a line is {{"prompt": "..."}}, or of a conversation, which needs '
                '--multi-turn, {"messages": [...]}'
            ) from None
        output_tokens = row.output_tokens if wanted is None else wanted
        if not output_tokens or output_tokens < 1:
            reason = "no output_tokens" if row.output_tokens is None else f"output_tokens is {row.output_tokens}"
            raise WorkloadInvalid(f"{path}, line {number}: {reason}; write at least 1, or give --custom-output-len")
        tokens = len(vocabulary.encode(row.prompt, special=True)) if vocabulary else 0
        prompts.append(Prompt(content=row.prompt, tokens=tokens, output_tokens=output_tokens, model=row.model))
    return shuffled(prompts, data)


def _sharegpt(data: Data, path: Path, vocabulary: Vocabulary | None) -> list[Prompt]:
    """A JSON list of conversations; the first turn is the prompt, the second the answer whose length is asked for."""
    try:
        found: list[Any] = msgspec.json.decode(path.read_bytes(), type=list[Any])
    except OSError as error:
        raise WorkloadInvalid(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadInvalid(f"{path} is not a JSON list of conversations: {error}") from None
    wanted = fixed_length(data)
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
    for question, answer, *_ in shuffled(conversations, data):
        if len(prompts) == data.num_prompts:
            break
        tokens = len(vocabulary.encode(question.value, special=True)) if vocabulary else 0
        output_tokens = wanted or (len(vocabulary.encode(answer.value, special=True)) if vocabulary else 0)
        fits = SHORTEST <= tokens <= LONGEST_PROMPT and tokens + output_tokens <= LONGEST
        if vocabulary is None or (fits and (wanted or output_tokens >= SHORTEST)):
            prompts.append(Prompt(content=question.value, tokens=tokens, output_tokens=output_tokens))
    return prompts


def shuffled(rows: list[Any], data: Data) -> list[Any]:
    return rows if data.disable_shuffle else random.Random(data.seed).sample(rows, len(rows))


def filled(prompts: list[Prompt], data: Data, path: Path) -> list[Prompt]:
    """Cut to --num-prompts, or filled up to it by prompts drawn again."""
    if not prompts:
        raise WorkloadInvalid(f"{path} has no prompt that can be sent: give another file")
    missing = data.num_prompts - len(prompts)
    if missing > 0 and not data.no_oversample:
        prompts = prompts + random.Random(data.seed).choices(prompts, k=missing)
    return prompts[: data.num_prompts]
