"""Prompts of random tokens: the datasets `random` and `prefix_repetition`, made as vLLM makes them."""

from __future__ import annotations

import math

import numpy as np

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.options import Data
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.vocabulary import Vocabulary


def random_prompts(data: Data, vocabulary: Vocabulary, flag: str = "--random-input-len") -> list[Prompt]:
    """Runs of consecutive ids from a random place of the vocabulary, after a prefix that all share.

    Raises OptionsInvalid, naming the flag of the length, where no token would be left for a prompt.
    """
    random = np.random.default_rng(data.seed)
    ratio, count = data.random_range_ratio, data.num_prompts
    wanted = data.input_len or data.random_input_len
    answer = data.output_len or data.random_output_len
    # The server adds its special tokens to what is sent.
    inner = max(0, wanted - vocabulary.added_to_prompts)
    low, high = math.floor(inner * (1 - ratio)), math.ceil(inner * (1 + ratio))
    if low + data.random_prefix_len < 1:
        raise OptionsInvalid(
            f"{flag} {wanted} leaves no token after {vocabulary.added_to_prompts} special ones: raise it"
        )
    lengths = random.integers(low, high + 1, count)
    answers = random.integers(max(1, math.floor(answer * (1 - ratio))), math.ceil(answer * (1 + ratio)) + 1, count)
    offsets = random.integers(0, vocabulary.size, count)
    ordinary = vocabulary.ordinary
    prefix = ordinary[random.integers(0, len(ordinary), data.random_prefix_len)].tolist()
    prompts = []
    for index in range(count):
        places = (int(offsets[index]) + index + np.arange(lengths[index])) % len(ordinary)
        tokens = vocabulary.stable(prefix + ordinary[places].tolist(), random)
        text = vocabulary.decode(tokens)
        prompts.append(Prompt(content=text, tokens=len(tokens), output_tokens=int(answers[index])))
    return prompts


def prefix_repetition(data: Data, vocabulary: Vocabulary) -> list[Prompt]:
    """A few prefixes, each before as many random suffixes: what a prefix cache is for. Raises OptionsInvalid."""
    prefixes = data.prefix_repetition_num_prefixes
    each = data.num_prompts // prefixes
    if each == 0:
        raise OptionsInvalid(
            f"--num-prompts {data.num_prompts} is below --prefix-repetition-num-prefixes {prefixes}: raise the one or "
            "lower the other"
        )
    random = np.random.default_rng(data.seed)
    output_tokens = data.output_len or data.prefix_repetition_output_len

    def tokens(length: int) -> list[int]:
        return vocabulary.stable(random.choice(vocabulary.ordinary, length).tolist(), random)

    prompts = []
    for _ in range(prefixes):
        prefix = tokens(data.prefix_repetition_prefix_len)
        for _ in range(each):
            ids = prefix + tokens(data.prefix_repetition_suffix_len)
            prompts.append(Prompt(content=vocabulary.decode(ids), tokens=len(ids), output_tokens=output_tokens))
    if not data.disable_shuffle:
        prompts = [prompts[place] for place in random.permutation(len(prompts))]
    return prompts
