"""Chat templates: messages to one prompt text, by the Jinja template that comes with the model.

The environment is the one Hugging Face transformers renders with (`transformers/utils/chat_template_utils.py`), so
that a template means the same here, and it is sandboxed: a template reads its variables and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loraplex.server.errors import BundleInvalid, InvalidRequest


class ChatTemplate:
    """One compiled template with the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile; raises BundleInvalid where the template is broken or fails on the plainest of conversations."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
            self.render([{"role": "user", "content": "Hello"}])
        except (TemplateError, InvalidRequest) as error:
            raise BundleInvalid(f"the chat template does not work: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, up to where the assistant's answer starts.

        Raises InvalidRequest with the template's own reason, for instance where roles must alternate and do not.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special_tokens
            )
        except SecurityError as error:
            raise BundleInvalid(f"the chat template does what it must not: {error}") from None
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from None


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which would end up in the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
