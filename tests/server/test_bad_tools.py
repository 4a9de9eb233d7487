"""Every bad definition of a tool, and every bad call, is refused by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.process import ServerProcess
from tests.server.test_bad_input import CHAT, MESSAGES, F, deep, post

G = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
        ({"tools": [F, F]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": 3}}}}]},
            "tools",
            "invalid_value",
        ),
        ({"tools": [F | {"function": {"name": "f", "parameters": deep(440)}}]}, "tools", "invalid_value"),
        ({"tools": [F], "tool_choice": "always"}, "tool_choice", "invalid_value"),
        (
            {"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            {"tools": [F], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [G]}}},
            "tool_choice.allowed_tools.tools[0].function.name",
            "invalid_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [F], "guided_regex": "a"}, "guided_regex", "invalid_value"),
        (
            {"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "x", "content": "y"}]},
            "messages[1].tool_call_id",
            "invalid_value",
        ),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "y"}]}, "messages[1].tool_call_id", "invalid_value"),
        ({"messages": [*MESSAGES, {"role": "assistant"}]}, "messages[1].content", "invalid_value"),
        (
            {
                "messages": [
                    *MESSAGES,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "x", "type": "function", "function": {"name": "f", "arguments": "nonsense"}}
                        ],
                    },
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        ),
    ],
)
def test_a_bad_request_with_tools_is_refused(
    tiny_server: ServerProcess, changes: dict[str, Any], param: str, code: str
) -> None:
    status, error = post(tiny_server, CHAT, json.dumps({"model": "small", "messages": MESSAGES} | changes).encode())
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


def test_what_is_deprecated_says_what_to_send_instead(tiny_server: ServerProcess) -> None:
    body = {"model": "small", "messages": MESSAGES, "functions": [{"name": "f"}]}
    _, error = post(tiny_server, CHAT, json.dumps(body).encode())
    assert error["message"] == "functions is not supported: send tools"
