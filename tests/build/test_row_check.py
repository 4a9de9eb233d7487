"""Rows that a base's tokenizer or chat template would make useless are refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraplex.build.errors import RecipeInvalid
from loraplex.build.validation import read_recipe, validate
from tests.build.test_workflow import make_byte_tokenizer
from tests.checkpoints import make_checkpoint, make_tokenizer

TEXT = {"text_template": "w9 {prompt} <|assistant|> {response}", "response_template": "<|assistant|>"}
CHAT = {"chat_template": True, "response_template": "<|assistant|>"}
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base", vocab_size=320)


def problems(base: Path, adapter: dict[str, Any], *rows: dict[str, Any]) -> list[str]:
    """What is told of a recipe with one adapter, without the file and the line."""
    folder = base.parent
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"base": "base", "adapters": {"a": {"data": "rows.jsonl"} | adapter}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    wanted, found = read_recipe(folder / "recipe.yaml")
    assert wanted is not None
    try:
        validate(wanted, folder, folder / "bundle", folder / "work", found)
    except RecipeInvalid as error:
        return [line.partition(": ")[2] for line in error.message.splitlines()]
    return []


def chat(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "w10"} for role in roles]}


def test_rows_of_which_the_answers_are_learned(base: Path) -> None:
    assert problems(base, TEXT, {"prompt": "w10", "response": "w11"}) == []
    assert problems(base, CHAT, chat("user", "assistant"), chat("system", "user", "assistant")) == []
    assert problems(base, {"text_template": "{prompt}"}, {"prompt": "w10"}) == []


def test_chats_need_a_template_that_takes_them(base: Path) -> None:
    template = base / "chat_template.jinja"
    template.write_text(REFUSES + template.read_text())
    assert problems(base, CHAT, chat("user", "assistant"), chat("system", "user")) == [
        "adapters.a.data: row 2: the base's chat template refuses it: System role not supported"
    ]
    heldout = {"data": "good.jsonl", "evaluation_data": "rows.jsonl"}
    (base.parent / "good.jsonl").write_text(json.dumps(chat("user", "assistant")))
    assert problems(base, CHAT | heldout, chat("system")) == [
        "adapters.a.evaluation_data: row 1: the base's chat template refuses it: System role not supported"
    ]
    template.unlink()
    told = f"adapters.a.chat_template: {base} has none: give a text_template"
    assert problems(base, CHAT, chat("user", "assistant")) == [told]


def test_the_answer_must_be_found_by_its_tokens(base: Path) -> None:
    make_byte_tokenizer(base, 320)
    row = {"prompt": "w100", "response": "w11"}
    # After a space its first letter is part of another token.
    joined = {"text_template": "{prompt} w12: {response}", "response_template": "w12:"}
    (told,) = problems(base, joined, row)
    assert told.startswith("adapters.a.response_template: row 1 does not have the tokens that 'w12:' has by itself")
    assert problems(base, joined | {"response_template": " w12:"}, row) == []
    assert problems(base, TEXT, row) == []
    assert problems(base, joined | {"text_template": "{prompt}"}, row) == [
        "adapters.a.response_template: row 1 has no 'w12:', so nothing of it is learned"
    ]


def test_the_answer_must_not_be_cut_off_in_every_row(base: Path) -> None:
    short, long = ({"prompt": " ".join(["w10"] * count), "response": "w11"} for count in (1, 10))
    assert problems(base, TEXT | {"max_seq_len": 8}, long, short) == []
    assert problems(base, TEXT | {"max_seq_len": 8}, long, long) == [
        "adapters.a.max_seq_len: cuts every row before its answer, at 8 tokens"
    ]


def test_tokens_that_the_base_does_not_have(base: Path) -> None:
    make_tokenizer(base, 330)
    plain = {"text_template": "{prompt}"}
    assert problems(base, plain, {"prompt": "w319"}) == []
    assert problems(base, plain, {"prompt": "w319"}, {"prompt": "w9 w325"}) == [
        "adapters.a.data: row 2 has token 325 ('w325'), and the base has 320 tokens"
    ]


def test_a_base_without_a_tokenizer(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()
    (told,) = problems(base, TEXT, {"prompt": "w10", "response": "w11"})
    assert told.startswith(f"base: {base} has no tokenizer that transformers can load: ")
