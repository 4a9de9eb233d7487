"""The format of a model's calls: found in its template, kept by its grammar, read back by the parser."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from loraplex.server.text.tool_format import (
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    MISTRAL_SPACED,
    PHI4,
    Callable,
    ToolFormat,
    format_of,
    grammar,
)
from loraplex.server.text.tool_parser import ArgumentsText, CallBegun, Piece, ToolParser
from tests.server.bytes_bundle import TEMPLATES

DEMO = Path(__file__).parents[3] / "adapters" / "demo" / "base" / "generator" / "tokenizer.json"
FORMATS = [HERMES, LLAMA, MISTRAL, MISTRAL_SPACED, MISTRAL_ARGS, GRANITE, PHI4]
TOOLS = [
    Callable(
        "weather",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        False,
    ),
    Callable("time", {"type": "object", "properties": {"zone": {"enum": ["utc"]}}, "required": ["zone"]}, True),
]
ANSWER = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
BAD: list[tuple[str, dict[str, Any]]] = [
    ("time", {"zone": "mars"}),
    ("time", {}),
    ("clock", {}),
    ("weather", {"city": 3}),
]
WEATHER: tuple[str, dict[str, Any]] = ("weather", {"city": 'a"}{[<tool_call>', "days": 3})
TIME: tuple[str, dict[str, Any]] = ("time", {"zone": "utc"})


@pytest.fixture(scope="module", params=[False, True], ids=["as characters", "as tokens"])
def tokenizer(request: pytest.FixtureRequest) -> tuple[Any, dict[str, int]]:
    """llguidance's tokenizer, and the added tokens that it takes for one unit."""
    found = Tokenizer.from_file(str(DEMO))
    if request.param:
        found.add_tokens([AddedToken(text) for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
        found.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|/tool_call|>"])
    added = {token.content: index for index, token in found.get_added_tokens_decoder().items()}
    return LLTokenizer(found.to_str(), eos_token=[5]), added


def accepts(tokenizer: tuple[Any, dict[str, int]], lark: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer[0], LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer[0].tokenize_str(text, parse_special=True)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda each: each.name)
def test_a_grammar_takes_calls_that_fit_and_no_others(tokenizer: Any, wanted: ToolFormat) -> None:
    auto = grammar(wanted, TOOLS, tokenizer[1], required=False, parallel=True)
    required = grammar(wanted, TOOLS, tokenizer[1], required=True, parallel=True)
    one = grammar(wanted, TOOLS, tokenizer[1], required=True, parallel=False)
    for lark in (auto, required, one):
        assert accepts(tokenizer, lark, wanted.write([TIME]))
        for name, arguments in BAD:
            assert not accepts(tokenizer, lark, wanted.write([(name, arguments)]))
        assert not accepts(tokenizer, lark, wanted.write([TIME])[:-1])
        assert not accepts(tokenizer, lark, wanted.write([TIME]) + " and so on")
        assert accepts(tokenizer, lark, wanted.write([TIME, TIME])) == (wanted.parallel and lark != one)
    for text in ("", "Hello <b> [1]\n", "a {"):
        assert accepts(tokenizer, auto, text)
        assert not accepts(tokenizer, required, text)
        assert accepts(tokenizer, auto, text + wanted.write([TIME])) or wanted.at_start


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda each: each.name)
def test_without_a_call_an_answer_may_have_to_be_json(tokenizer: Any, wanted: ToolFormat) -> None:
    lark = grammar(wanted, TOOLS, tokenizer[1], required=False, parallel=True, text=ANSWER)
    assert accepts(tokenizer, lark, '{"a": 3}')
    assert accepts(tokenizer, lark, wanted.write([TIME]))
    assert not accepts(tokenizer, lark, "Hello")
    assert not accepts(tokenizer, lark, '{"b": 3}')


def test_text_may_have_the_tokens_that_show(tokenizer: Any) -> None:
    added = tokenizer[1]
    if "<think>" not in added:
        pytest.skip("they are characters")
    visible = [added["<think>"], added["</think>"], added["<tool_call>"]]
    call = HERMES.write([TIME])
    for shown, expected in ((visible, True), ([], False)):
        lark = grammar(HERMES, TOOLS, added, required=False, parallel=True, visible=shown)
        assert accepts(tokenizer, lark, "<think>so</think>\nHello") == expected
        assert accepts(tokenizer, lark, "<think>so</think>" + call) == expected
        assert accepts(tokenizer, lark, "so " + call)
        assert not accepts(tokenizer, lark, "<think><tool_call>so</tool_call>")


def test_what_strict_says_of_a_schema_that_cannot_be_enforced() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    reasons = [
        LLMatcher.validate_grammar(
            LLMatcher.grammar_from_lark(
                grammar(HERMES, [Callable("f", schema, strict)], {}, required=True, parallel=True)
            )
        )
        for strict in (False, True)
    ]
    assert "uniqueItems" in reasons[1]
    assert not reasons[0] or reasons[0].startswith("WARNING")


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("text", ["", "Let me see. <tool [TOOL <| "])
def test_however_an_answer_is_cut_it_reads_the_same(wanted: ToolFormat, text: str) -> None:
    calls = [WEATHER, TIME] if wanted.parallel else [WEATHER]
    answer = ("" if wanted.at_start else text) + wanted.write(calls)
    for seed in range(40):
        parser = ToolParser(wanted)
        random_cuts = random.Random(seed)
        cuts = range(1, len(answer)) if seed == 0 else sorted(random_cuts.sample(range(1, len(answer)), seed))
        pieces: list[Piece] = []
        for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True):
            pieces += parser.feed(answer[start:end])
        pieces += parser.flush()
        assert parser.complete
        assert "".join(piece for piece in pieces if isinstance(piece, str)) == ("" if wanted.at_start else text)
        begun = [piece for piece in pieces if isinstance(piece, CallBegun)]
        assert [(piece.call, piece.name) for piece in begun] == [(i, name) for i, (name, _) in enumerate(calls)]
        for index, (_, arguments) in enumerate(calls):
            said = [piece.text for piece in pieces if isinstance(piece, ArgumentsText) and piece.call == index]
            assert json.loads("".join(said)) == arguments


@pytest.mark.parametrize("wanted", [each for each in FORMATS if not each.at_start], ids=lambda each: each.name)
def test_text_that_only_begins_like_a_call_is_text(wanted: ToolFormat) -> None:
    parser = ToolParser(wanted)
    text = f"x {wanted.trigger[:-1]}"
    pieces = [*parser.feed(text), *parser.flush()]
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == text
    assert not parser.complete


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        *((TEMPLATES[name], name) for name in TEMPLATES),
        # As in Qwen2.5, Llama 3.2, Mistral Nemo and 7B v0.3, Mistral Small 3.2, Granite 3.1, Phi-3.5, Qwen3-Coder.
        ("{%- if tools %}within <tool_call></tool_call> XML tags:\\n<tool_call>\\n", "hermes"),
        ('tools \'Environment: ipython\' {"name": function name, "parameters": dictionary', "llama"),
        ('{{- "[TOOL_CALLS][" }} tools', "mistral"),
        ('tools {{- "[TOOL_CALLS] [" }}', "mistral, spaced"),
        ("tools '[TOOL_CALLS]' + name + '[ARGS]' + arguments", "mistral, args"),
        ("tools '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' + arguments", "generic"),
        ("tools Write <|tool_call|> followed by a JSON list of tools used.", "granite"),
        ("{% if message['role'] == 'user' %}{{'<|user|>\\n' + message['content']}}", "generic"),
        ("tools <tool_call>\\n<function=example_function_name>", "generic"),
    ],
)
def test_a_template_says_how_its_model_calls(template: str, expected: str) -> None:
    assert format_of(template).name == expected
    assert (format_of(template) is GENERIC) == (expected == "generic")
