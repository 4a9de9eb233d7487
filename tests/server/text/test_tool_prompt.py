"""What a model is told of tools and of earlier calls, by its template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loraplex.server.text.template import ChatTemplate
from tests.server.bytes_bundle import TEMPLATES

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_time", "description": "The time", "parameters": {"type": "object"}}}
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Time?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Noon.", "name": "get_time", "tool_call_id": "abcdefghi"},
]
CALLS = {
    "hermes": '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "get_time", "arguments": {"zone": "UTC"}}]',
    "phi-4": '<|tool_call|>[{"name": "get_time", "arguments": {"zone": "UTC"}}]<|/tool_call|>',
    "generic": '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>',
}


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_model_sees_its_tools_and_what_calls_came_to(family: str) -> None:
    template = ChatTemplate(TEMPLATES[family], {})
    shown = template.render(TALK, TOOLS)
    assert "get_time" in shown
    assert "The time" in shown
    assert "Noon." in shown
    assert CALLS.get(family, "") in shown
    assert "The time" not in template.render(TALK)


def test_a_template_without_tools_is_told_in_the_system_message() -> None:
    template = ChatTemplate(TEMPLATES["generic"], {})
    assert template.tools.name == "generic"
    without = template.render(TALK, TOOLS)
    assert without.startswith("<|system|># Tools\n\n")
    assert json.dumps(TOOLS[0]) in without
    system = {"role": "system", "content": "Be brief."}
    assert template.render([system, *TALK], TOOLS).startswith("<|system|>Be brief.\n\n# Tools\n\n")
    assert "<|user|><tool_response>\nNoon.\n</tool_response>" in without
    said = [TALK[0], {**TALK[1], "content": "Let me see."}, TALK[2]]
    assert f"<|assistant|>Let me see.\n{CALLS['generic']}" in template.render(said, TOOLS)


def test_phi_4_has_its_tools_in_the_system_message() -> None:
    template = ChatTemplate(TEMPLATES["phi-4"], {})
    shown = template.render([{"role": "system", "content": "Be brief."}, *TALK], TOOLS)
    listed = json.dumps([tool["function"] for tool in TOOLS])
    assert shown.startswith(f"<|system|>Be brief.<|tool|>{listed}<|/tool|><|end|><|user|>Time?<|end|>")
    assert shown.endswith("<|tool|>Noon.<|end|><|assistant|>")


def test_a_template_gets_variables_of_its_own_and_no_others() -> None:
    template = ChatTemplate(
        "{% for message in messages %}{{ message.content }}{{ message.reasoning_content }}{% endfor %}"
        "{% if thinking is defined and not thinking %}<no think>{% endif %}{{ bos_token }}",
        {"bos_token": "<s>"},
    )
    messages = [{"role": "user", "content": "Hello", "reasoning_content": "?"}]
    assert template.render(messages) == "Hello?<s>"
    assert template.render(messages, variables={"thinking": False}) == "Hello?<no think><s>"
    assert template.render(messages, variables={"messages": [], "bos_token": "x", "thinking": True}) == "Hello?<s>"
