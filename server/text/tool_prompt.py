"""Tools and their calls as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loraplex.server.text.tool_format import ToolFormat

Message = Mapping[str, Any]
"""As transformers' templates expect it (https://huggingface.co/docs/transformers/chat_extras): `role` and `content`;
`tool_calls` of an assistant, with arguments as objects; `name` and `tool_call_id` of a tool."""

INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""As Qwen2.5's template words it, after Hermes (https://github.com/NousResearch/Hermes-Function-Calling)."""


def show(
    wanted: ToolFormat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
    """The messages and the tools to render a template with."""
    if wanted.shown_by == "template":
        return list(messages), list(tools) or None
    shown = [_written(wanted, message) for message in messages]
    if tools:
        first = shown[0] if shown and shown[0]["role"] == "system" else {"role": "system", "content": ""}
        rest = shown[1:] if shown and shown[0]["role"] == "system" else shown
        if wanted.shown_by == "prompt":
            listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            said = INSTRUCTIONS.format(tools=listed)
            first = {**first, "content": f"{first['content']}\n\n{said}" if first["content"] else said}
        else:
            first = {**first, "tools": json.dumps([tool["function"] for tool in tools], ensure_ascii=False)}
        shown = [first, *rest]
    return shown, None


def _written(wanted: ToolFormat, message: Message) -> Message:
    """Calls and what they came to as plain content, for a template that knows of neither."""
    if calls := message.get("tool_calls"):
        written = wanted.write([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
        separator = "\n" if message["content"] else ""
        return {"role": "assistant", "content": f"{message['content']}{separator}{written}"}
    if message["role"] == "tool" and wanted.shown_by == "prompt":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    return message
