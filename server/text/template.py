"""Chat templates: messages to one prompt text, by the Jinja template that comes with the model.

The environment is the one Hugging Face transformers renders with (`transformers/utils/chat_template_utils.py`), so
that a template means the same here, and it is sandboxed: a template reads its variables and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loraplex.server.errors import BundleInvalid, InvalidRequest
from loraplex.server.text.tool_format import format_of
from loraplex.server.text.tool_prompt import Message, show


class _Generation(Extension):
    """{% generation %}, by which training tells the assistant's tokens from others: here what it encloses."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template with the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile; raises BundleInvalid where the template is broken or fails on the plainest of conversations."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._special_tokens = dict(special_tokens)
        self.tools = format_of(source)
        """How the model calls tools."""
        try:
            self._template = environment.from_string(source)
            self.render([{"role": "user", "content": "Hello"}])
        except (TemplateError, InvalidRequest) as error:
            raise BundleInvalid(f"the chat template does not work: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt, up to where the assistant's answer starts. `variables` are those that only this template has.

        Raises InvalidRequest with the template's own reason, for instance where roles must alternate and do not.
        """
        try:
            shown, listed = show(self.tools, messages, tools)
            return self._template.render(
                {
                    **variables,
                    **self._special_tokens,
                    "messages": shown,
                    "add_generation_prompt": add_generation_prompt,
                    "tools": listed,
                    "documents": None,
                }
            )
        except SecurityError as error:
            raise InvalidRequest(f"the chat template does what it must not: {error}", param="messages") from None
        except RecursionError:
            raise InvalidRequest("what the chat template is given is nested too deeply", param="messages") from None
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from None


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would end up in the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
