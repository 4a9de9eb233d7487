"""A guide in llguidance's own form. The API's check and the engine's matcher read it alike."""

from __future__ import annotations

from llguidance import LLMatcher

from loraplex.server.engine.messages import Guide


def grammar(guide: Guide) -> str:
    """Raises ValueError with llguidance's reason where the text cannot be read."""
    match guide.kind:
        case "json_schema":
            found = LLMatcher.grammar_from_json_schema(guide.text)
        case "regex":
            found = LLMatcher.grammar_from_regex(guide.text)
        case "grammar":
            found = LLMatcher.grammar_from_lark(guide.text)
    return str(found)
