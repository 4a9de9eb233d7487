"""Guides checked before a request is taken on: a schema that cannot be compiled is the client's mistake."""

from __future__ import annotations

from llguidance import LLMatcher

from loraplex.server.engine.messages import Guide
from loraplex.server.errors import InvalidRequest


def check_guide(guide: Guide, param: str) -> None:
    """Compile a guide, without a tokenizer. Raises InvalidRequest with llguidance's own reason."""
    try:
        match guide.kind:
            case "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(guide.text)
            case "regex":
                grammar = LLMatcher.grammar_from_regex(guide.text)
            case "grammar":
                grammar = LLMatcher.grammar_from_lark(guide.text)
        reason = LLMatcher.validate_grammar(grammar)
    except ValueError as error:
        reason = str(error)
    if reason:
        raise InvalidRequest(f"{param} cannot be followed: {reason}", param=param)
