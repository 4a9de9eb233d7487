"""A request's messages as the prompt of its model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loraplex.server.api.conversation import AssistantMessage, ChatMessage, ToolMessage
from loraplex.server.errors import ContextLengthExceeded, InvalidRequest
from loraplex.server.model import Model
from loraplex.server.serving import Serving
from loraplex.server.text.foreign_template import ForeignTemplate

MANY = 16
"""Characters that few texts have to a token."""
ROLES = {"developer": "system"}
"""OpenAI's newer name for the system role; templates know the older one."""


async def render(
    model: Model,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt's text; `variables` are the template's own.

    Raises InvalidRequest where the template refuses, or calls and their results do not match.
    """
    if model.template is None:
        raise InvalidRequest(f"{model.name!r} has no chat template: use /v1/completions", param="messages")
    plain, given = _messages(messages), variables or {}
    if isinstance(model.template, ForeignTemplate):
        return await model.template.render(plain, tools, add_generation_prompt=add_generation_prompt, variables=given)
    return model.template.render(plain, tools, add_generation_prompt=add_generation_prompt, variables=given)


async def encode_prompt(server: Serving, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
    """The tokens of a prompt. Raises ContextLengthExceeded where they are far too many.

    That is told by the beginning of a long text: all of it would take a core for seconds, and then be refused.
    """
    limit = server.context_length
    if len(text) > MANY * limit:
        beginning = await server.text.encode(text[: MANY * limit], add_special_tokens=add_special_tokens)
        if len(beginning) > 2 * limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens, but the prompt has over {len(beginning)} "
                "tokens. Shorten the prompt",
                param=param,
            )
    return await server.text.encode(text, add_special_tokens=add_special_tokens)


def _messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    called: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        role = message.__struct_config__.tag
        assert isinstance(role, str)
        plain: dict[str, Any] = {"role": ROLES.get(role, role), "content": message.text()}
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in called:
                raise InvalidRequest(
                    f"no assistant message before this one has a call {message.tool_call_id!r} in its tool_calls",
                    param=f"messages[{index}].tool_call_id",
                )
            plain |= {"name": called[message.tool_call_id], "tool_call_id": message.tool_call_id}
        elif message.name is not None:
            plain["name"] = message.name
        if isinstance(message, AssistantMessage):
            if message.reasoning_content is not None:
                plain["reasoning_content"] = message.reasoning_content
            if message.tool_calls:
                called |= {call.id: call.function.name for call in message.tool_calls}
                plain["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": _arguments(
                                call.function.arguments,
                                f"messages[{index}].tool_calls[{number}].function.arguments",
                            ),
                        },
                    }
                    for number, call in enumerate(message.tool_calls)
                ]
            elif message.content is None and message.refusal is None:
                raise InvalidRequest(
                    "an assistant message needs content or tool_calls", param=f"messages[{index}].content"
                )
        found.append(plain)
    return found


def _arguments(text: str, param: str) -> dict[str, Any]:
    """Templates write them as they write any object. An empty text is what some clients make of no arguments."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest("arguments must be a JSON object, as text", param=param)
    return found
