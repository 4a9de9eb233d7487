"""Conversations of every dataset that has them, and files that have none."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest

from loraplex.bench.errors import OptionsInvalid, WorkloadInvalid
from loraplex.bench.load.conversations import load_conversations
from loraplex.bench.load.options import Adapters, Data, Traffic
from loraplex.bench.load.prompt import Message, Prompt
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.target import Target
from loraplex.bench.load.turns import Turns
from loraplex.bench.load.vocabulary import Vocabulary
from loraplex.bench.load.workload import Workload
from tests.bench.conftest import DEMO

QUESTION, ANSWER = "What should I see in Paris?", "The Eiffel Tower and the Louvre."


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(str(DEMO))


def turns_of(prompt: Prompt) -> list[Prompt]:
    return [prompt, *(prompt.then or ())]


def said(*pairs: tuple[str, str]) -> dict[str, object]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}


def messages(*pairs: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def lines(path: Path, *rows: object) -> Data:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return Data(dataset_name="custom", dataset_path=path, no_oversample=True, disable_shuffle=True)


def test_random_conversations_have_the_turns_and_lengths_asked_for(vocabulary: Vocabulary) -> None:
    data = Data(num_prompts=8, random_input_len=40, random_output_len=7, random_prefix_len=10)
    turns = Turns(multi_turn=True, multi_turn_num_turns=4, multi_turn_delay_ms=250, per_turn_input_len=12)
    found = load_conversations(data, turns, vocabulary)
    special = vocabulary.added_to_prompts
    assert [[each.tokens for each in turns_of(prompt)] for prompt in found] == [[50 - special, *[12 - special] * 3]] * 8
    assert all(each.output_tokens == 7 for prompt in found for each in turns_of(prompt))
    assert [each.at for each in turns_of(found[0])] == [None, 0.25, 0.25, 0.25]
    assert len({each.content for prompt in found for each in turns_of(prompt)}) == 32
    assert found == load_conversations(data, turns, vocabulary)
    plain = load_conversations(data, Turns(multi_turn=True), vocabulary)
    assert [each.tokens for each in turns_of(plain[0])] == [50 - special, 40 - special, 40 - special]


def test_turns_of_random_conversations_may_differ(vocabulary: Vocabulary) -> None:
    turns = Turns(multi_turn=True, multi_turn_min_turns=1, multi_turn_max_turns=4)
    found = load_conversations(Data(num_prompts=100, random_input_len=8), turns, vocabulary)
    assert {len(turns_of(prompt)) for prompt in found} == {1, 2, 3, 4}
    with pytest.raises(OptionsInvalid, match="random needs a tokenizer"):
        load_conversations(Data(num_prompts=2), turns, None)


def test_arrivals_and_adapters_are_of_conversations(vocabulary: Vocabulary) -> None:
    prompts = load_conversations(Data(num_prompts=6, random_input_len=8), Turns(multi_turn=True), vocabulary)
    workload = Workload(Target(backend="openai-chat"), Data(), Sampling(), Adapters(adapters=("a", "b")), "base")
    plan = workload.plan(prompts, Traffic(request_rate=2.0))
    assert len(plan) == 6
    assert plan[-1].at == pytest.approx(3.0)
    assert all(each.left == 2 and each.then is not None for each in plan)
    assert {each.model for each in plan} <= {"a", "b"}


def test_messages_of_a_file_are_sent_but_its_answers(tmp_path: Path, vocabulary: Vocabulary) -> None:
    data = lines(
        tmp_path / "c.jsonl",
        messages(
            *(("system", "Be brief."), ("assistant", "Hello, I am a bot."), ("user", QUESTION), ("assistant", ANSWER)),
            *(("user", "Wait."), ("user", "And in Rome?"), ("assistant", ANSWER), ("user", "Thanks.")),
        )
        | {"model": "travel"},
        messages(("user", "Hi")),
    )
    first, second = load_conversations(data, Turns(multi_turn=True), vocabulary)
    one, two, three = turns_of(first)
    assert (one.content, one.before, one.model) == (QUESTION, (Message("system", "Be brief."),), "travel")
    assert one.tokens == len(vocabulary.encode(QUESTION)) + len(vocabulary.encode("Be brief."))
    assert (two.content, two.before) == ("And in Rome?", (Message("user", "Wait."),))
    assert (three.content, three.output_tokens) == ("Thanks.", 256)
    assert second.then == ()
    (cut, _) = load_conversations(data, Turns(multi_turn=True, multi_turn_max_turns=2), None)
    assert len(turns_of(cut)) == 2


def test_answers_are_as_long_as_the_files(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "s.json"
    talk = said(
        *(("human", QUESTION), ("gpt", ANSWER), ("human", ""), ("gpt", "?"), ("human", "And Rome?"), ("bing", "No."))
    )
    short = said(("human", QUESTION), ("gpt", ANSWER))
    path.write_bytes(BOM_UTF8 + json.dumps([short, talk, said(), said(("gpt", "Hi"))]).encode())
    data = Data(dataset_name="sharegpt", dataset_path=path, num_prompts=5, no_oversample=True)
    (found,) = load_conversations(data, Turns(multi_turn=True), vocabulary)  # of two turns or more
    assert [each.content for each in turns_of(found)] == [QUESTION, "And Rome?"]
    assert [each.output_tokens for each in turns_of(found)] == [
        len(vocabulary.encode(ANSWER)),
        len(vocabulary.encode("No.")),
    ]
    with pytest.raises(OptionsInvalid, match="needs a tokenizer"):
        load_conversations(data, Turns(multi_turn=True), None)
    fixed = Data(dataset_name="sharegpt", dataset_path=path, num_prompts=5, sharegpt_output_len=9)
    prompts = load_conversations(fixed, Turns(multi_turn=True), None)
    assert len(prompts) == 5  # drawn again
    assert all(each.output_tokens == 9 for prompt in prompts for each in turns_of(prompt))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"prompt": "a"}', "line 1: no messages"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": 3}', "line 2: .*messages"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "line 1: role 'tool' cannot be sent again"),
        ('{"messages": [{"role": "user", "content": "a"}], "output_tokens": 0}', "line 1: output_tokens is 0"),
        ('[{"conversations": [{"value": "a"}]}]', "entry 1: .*`from`"),
        ('[{"conversations": []}', "not a JSON list"),
        ("[]", "has no prompt"),
        ('{"messages": [{"role": "user", "content": "caf\udce9"}]}', "line 1: .*utf-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_the_format(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, errors="surrogateescape")
    data = Data(dataset_name="custom", dataset_path=path, custom_output_len=-1)
    with pytest.raises(WorkloadInvalid, match=reason):
        load_conversations(data, Turns(multi_turn=True), None)
