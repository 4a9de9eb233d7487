"""Prompts of every dataset, and files that are none."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest

from loraplex.bench.errors import OptionsInvalid, WorkloadInvalid
from loraplex.bench.load.dataset import load_prompts
from loraplex.bench.load.options import Data
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.trace import BLOCK
from loraplex.bench.load.vocabulary import Vocabulary
from tests.bench.conftest import DEMO

ARRIVAL = '{"timestamp": %d, "input_length": %d, "output_length": 1%s}'


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """The demo bundle's, found under the bundle."""
    return Vocabulary(str(DEMO))


def load(data: Data, vocabulary: Vocabulary | None = None, *, timed: bool = True, chat: bool = False) -> list[Prompt]:
    return load_prompts(data, vocabulary, timed=timed, chat=chat)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_random_prompts_have_the_length_asked_for(vocabulary: Vocabulary) -> None:
    data = Data(num_prompts=20, random_input_len=50, random_output_len=9, random_prefix_len=10)
    prompts = load(data, vocabulary)
    assert len(prompts) == 20
    for prompt in prompts:
        assert isinstance(prompt.content, str)
        assert len(vocabulary.encode(prompt.content)) == prompt.tokens
        assert prompt.tokens == 60 - vocabulary.added_to_prompts
        assert prompt.output_tokens == 9
    first = [vocabulary.encode(str(prompt.content))[:8] for prompt in prompts]
    assert all(each == first[0] for each in first)  # of the shared prefix
    assert len({prompt.content for prompt in prompts}) == 20


def test_the_seed_decides(vocabulary: Vocabulary) -> None:
    once = load(Data(num_prompts=3, random_input_len=30, seed=1), vocabulary)
    assert once == load(Data(num_prompts=3, random_input_len=30, seed=1), vocabulary)
    assert once != load(Data(num_prompts=3, random_input_len=30, seed=2), vocabulary)


def test_lengths_spread_by_the_ratio(vocabulary: Vocabulary) -> None:
    data = Data(num_prompts=200, random_input_len=100, random_output_len=100, random_range_ratio=0.5)
    prompts = load(data, vocabulary)
    answers = [prompt.output_tokens for prompt in prompts]
    assert [min(answers), max(answers)] == pytest.approx([50, 150], abs=5)
    assert min(prompt.tokens for prompt in prompts) < 60 < 140 < max(prompt.tokens for prompt in prompts)


def test_input_and_output_len_stand_for_the_datasets_own(vocabulary: Vocabulary) -> None:
    (prompt,) = load(Data(num_prompts=1, input_len=33, output_len=4), vocabulary)
    assert (prompt.tokens, prompt.output_tokens) == (33 - vocabulary.added_to_prompts, 4)


def test_prefix_repetition_repeats_prefixes(vocabulary: Vocabulary) -> None:
    data = Data(
        dataset_name="prefix_repetition",
        num_prompts=13,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=20,
        prefix_repetition_suffix_len=10,
        prefix_repetition_output_len=5,
    )
    prompts = load(data, vocabulary)
    assert len(prompts) == 12  # four of each
    beginnings = {tuple(vocabulary.encode(str(prompt.content))[:15]) for prompt in prompts}
    assert len(beginnings) == 3
    assert all(prompt.output_tokens == 5 for prompt in prompts)
    with pytest.raises(OptionsInvalid, match="--prefix-repetition-num-prefixes 99"):
        load(Data(dataset_name="prefix_repetition", num_prompts=9, prefix_repetition_num_prefixes=99), vocabulary)


def test_custom_prompts_go_as_they_are(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"prompt": "Hello", "model": "tone"}, {"prompt": "Paris", "output_tokens": 3})
    data = Data(dataset_name="custom", dataset_path=path, num_prompts=2, disable_shuffle=True)
    one, two = load(data, vocabulary)
    assert (one.content, one.model, one.output_tokens) == ("Hello", "tone", 256)
    assert (two.content, two.model, two.output_tokens) == ("Paris", None, 256)
    assert load(data)[0].tokens == 0
    own = Data(dataset_name="custom", dataset_path=path, num_prompts=1, custom_output_len=-1, disable_shuffle=True)
    with pytest.raises(WorkloadInvalid, match="line 1: no output_tokens"):
        load(own)


def test_a_short_dataset_is_repeated_unless_told_not_to(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert len(load(Data(dataset_name="custom", dataset_path=path, num_prompts=7))) == 7
    assert len(load(Data(dataset_name="custom", dataset_path=path, num_prompts=7, no_oversample=True))) == 2


def test_sharegpt_takes_the_first_question_and_the_length_of_its_answer(tmp_path: Path, vocabulary: Vocabulary) -> None:
    question, answer = "What should I see in Paris?", "The Eiffel Tower and the Louvre."
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    short = [{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"id": "1", "conversations": turns}, {"conversations": short}, {"conversations": []}]))
    data = Data(dataset_name="sharegpt", dataset_path=path, num_prompts=5, no_oversample=True)
    (prompt,) = load(data, vocabulary)
    assert prompt.content == question
    assert prompt.output_tokens == len(vocabulary.encode(answer, special=True))
    with pytest.raises(OptionsInvalid, match="--sharegpt-output-len"):
        load(data)


def test_a_trace_keeps_times_lengths_blocks_and_models(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = jsonl(
        tmp_path / "t.jsonl",
        {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]},
        {"timestamp": 1000, "input_length": 30, "output_length": 4, "model": "tone"},
        {"timestamp": 2000, "input_length": 1000, "output_length": 6, "hash_ids": [7, 8]},
    )
    data = Data(dataset_name="trace", dataset_path=path)
    prompts = load(data, vocabulary)
    assert [(each.at, each.tokens, each.output_tokens) for each in prompts] == [
        (0.0, 30, 4),
        (1.0, 1000, 6),
        (2.0, 600, 5),
    ]
    assert prompts[0].model == "tone"
    second, third = (list(each.content) for each in prompts[1:])
    assert second[:BLOCK] == third[:BLOCK]
    assert second[BLOCK:600] != third[BLOCK:600]
    faster = load(Data(dataset_name="timed_trace", dataset_path=path, trace_speed=2.0), vocabulary)
    assert [each.at for each in faster] == [0.0, 0.5, 1.0]
    seconds = load(Data(dataset_name="trace", dataset_path=path, trace_unit="s", num_prompts=2), vocabulary)
    assert [each.at for each in seconds] == [0.0, 1000.0]
    untimed = load(data, vocabulary, timed=False, chat=True)
    assert all(each.at is None and isinstance(each.content, str) for each in untimed)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "trace",
            '{"timestamp": 0, "input_length": 5, "output_length": 1}\n{"timestamp": 0}',
            r"line 2: .*input_length",
        ),
        ("trace", '{"timestamp": -1, "input_length": 5, "output_length": 1}', r"line 1: .*timestamp"),
        (
            "trace",
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}',
            "line 1: 2 hash_ids do not",
        ),
        ("trace", "\n", "is empty"),
        ("trace", "timestamp,input_length\n0,5", "line 1"),
        ("custom", '{"prompt": "a"}\n{"text": "b"}', r"line 2: .*`prompt`"),
        ("custom", "", "has no prompt"),
        ("sharegpt", '{"conversations": []}', "not a JSON list"),
        ("sharegpt", '[{"conversations": [{"value": 3}]}]', "entry 1"),
        ("sharegpt", "[]", "has no prompt"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_the_format(
    tmp_path: Path, vocabulary: Vocabulary, name: str, content: str, reason: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    data = Data(dataset_name=name, dataset_path=path)  # type: ignore[arg-type]
    with pytest.raises(WorkloadInvalid, match=reason):
        load(data, vocabulary)


@pytest.mark.parametrize("name", ["trace", "custom", "sharegpt"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, vocabulary: Vocabulary, name: str) -> None:
    path = tmp_path / "latin.jsonl"
    fields = b'"timestamp": 0, "input_length": 5, "output_length": 1, "model": "caf\xe9", "prompt": "caf\xe9"'
    path.write_bytes(b'[{"conversations": [{"value": "caf\xe9"}]}]' if name == "sharegpt" else b"{" + fields + b"}")
    data = Data(dataset_name=name, dataset_path=path)  # type: ignore[arg-type]
    with pytest.raises(WorkloadInvalid, match=r"latin\.jsonl.*utf-8"):
        load(data, vocabulary)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(BOM_UTF8 + b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    found = load(Data(dataset_name="custom", dataset_path=path, num_prompts=2, disable_shuffle=True))
    assert [each.content for each in found] == ["a", "b"]


def test_an_answer_has_a_token_at_least(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "none.jsonl", {"prompt": "a", "output_tokens": 0})
    data = Data(dataset_name="custom", dataset_path=path, custom_output_len=-1)
    with pytest.raises(WorkloadInvalid, match="line 1: output_tokens is 0"):
        load(data)
    with pytest.raises(OptionsInvalid, match="--custom-output-len 0"):
        load(Data(dataset_name="custom", dataset_path=path, custom_output_len=0))


@pytest.mark.parametrize("name", ["trace", "custom", "sharegpt"])
def test_a_missing_file_is_named(tmp_path: Path, vocabulary: Vocabulary, name: str) -> None:
    data = Data(dataset_name=name, dataset_path=tmp_path / "none")  # type: ignore[arg-type]
    with pytest.raises(WorkloadInvalid, match="none: No such file"):
        load(data, vocabulary)
    with pytest.raises(OptionsInvalid, match="needs --dataset-path"):
        load(Data(dataset_name=name), vocabulary)  # type: ignore[arg-type]


def test_what_needs_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(OptionsInvalid, match="give --tokenizer"):
        load(Data())
    with pytest.raises(OptionsInvalid, match="has no file"):
        load(Data(dataset_path=tmp_path))
    with pytest.raises(OptionsInvalid, match=r"no tokenizer for .*has no tokenizer\.json"):
        Vocabulary(str(tmp_path))
