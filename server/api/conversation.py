"""What a chat request says: messages of every role, the tools it offers, and the calls that were made.

https://platform.openai.com/docs/api-reference/chat/create; unknown fields are refused, and fields that clients send
back from an earlier answer (`refusal`, `annotations`) are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
MAX_TOOLS = 128


class TextPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str
    prompt_cache_breakpoint: Any = None
    """A hint for OpenAI's cache."""


class RefusalPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class FunctionCall(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName
    arguments: str
    """JSON."""


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    id: str
    function: FunctionCall


class GivenFunctionCall(FunctionCall, frozen=True, forbid_unknown_fields=True):
    parsed_arguments: Any = None
    """OpenAI's client's reading of them."""


class GivenToolCall(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call of an earlier answer, sent back."""

    id: str
    function: GivenFunctionCall
    index: int | None = None
    """Of a call that was put together from chunks."""


class FunctionDelta(Struct, frozen=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    """A call's first chunk has its id and name, the others more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", kw_only=True):
    """Base of what has content."""

    content: str | list[TextPart]
    name: str | None = None

    def text(self) -> str:
        return _text(self.content)


class SystemMessage(Message, frozen=True, forbid_unknown_fields=True, tag="system"):
    pass


class DeveloperMessage(Message, frozen=True, forbid_unknown_fields=True, tag="developer"):
    """OpenAI's newer name for the system's message."""


class UserMessage(Message, frozen=True, forbid_unknown_fields=True, tag="user"):
    pass


class ToolMessage(Message, frozen=True, forbid_unknown_fields=True, tag="tool"):
    """What a call came to."""

    tool_call_id: str


class AssistantMessage(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"):
    """An earlier answer, also exactly as this server gave it."""

    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[GivenToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    reasoning_content: str | None = None
    """For templates that show it (vLLM's extension)."""
    parsed: Any = None
    """OpenAI's client's reading of the content."""
    provider_specific_fields: Any = None
    """LiteLLM's note to itself."""

    def text(self) -> str:
        return _text(self.content) or self.refusal or ""


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def _text(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


class FunctionDefinition(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments; None for a function without any."""
    strict: bool | None = None
    """Refuse a schema of which a part cannot be enforced, rather than leave that part out."""


class Tool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: FunctionDefinition


class ToolName(Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: ToolName


class Allowance(Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1)]


class AllowedTools(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: Allowance


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
