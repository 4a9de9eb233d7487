"""A word that a field does not take is answered with those that it takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.server.process import ServerProcess
from tests.server.test_bad_input import CHAT, MESSAGES, post

ROLES = "'system' or 'developer' or 'user' or 'assistant' or 'tool'"
FORMATS = "'text' or 'json_object' or 'json_schema'"


@pytest.mark.parametrize(
    ("path", "changes", "param", "told"),
    [
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", f"give {ROLES}"),
        (CHAT, {"tool_choice": "maybe"}, "tool_choice", "give 'auto' or 'none' or 'required'"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", f"give {FORMATS}"),
        ("/v1/responses", {"text": {"format": {"type": "xml"}}}, "text.format.type", f"give {FORMATS}"),
        # What a part may be depends on the role.
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "song"}]}]},
            "messages[0].content[0].type",
            "'song'",
        ),
    ],
)
def test_the_words_that_a_field_takes_are_told(
    tiny_server: ServerProcess, path: str, changes: dict[str, Any], param: str, told: str
) -> None:
    body = {"model": "small", "messages": MESSAGES} if path == CHAT else {"model": "small", "input": "w10"}
    status, error = post(tiny_server, path, msgspec.json.encode(body | changes))
    assert (status, error["param"]) == (400, param)
    assert error["message"].endswith(told)
