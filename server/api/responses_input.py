"""A request for a response in the terms of chat completions."""

from __future__ import annotations

from typing import Any

from loraplex.server.api.body import convert
from loraplex.server.api.conversation import (
    Allowance,
    AllowedTools,
    AssistantMessage,
    ChatMessage,
    DeveloperMessage,
    FunctionDefinition,
    GivenFunctionCall,
    GivenToolCall,
    NamedTool,
    SystemMessage,
    Tool,
    ToolChoice,
    ToolMessage,
    ToolName,
    UserMessage,
)
from loraplex.server.api.responses_schema import (
    ChosenFunction,
    ChosenTools,
    GivenRefusal,
    GivenText,
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputText,
    JSONSchemaText,
    ResponsesRequest,
)
from loraplex.server.api.schema import ChatRequest, JSONSchema, JSONSchemaFormat
from loraplex.server.errors import InvalidRequest

_NAMES = (
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("function.", ""),
    ("tool_choice.allowed_tools.", "tool_choice."),
)
"""What chat completions call a field, and its name here."""


def chat_request(body: ResponsesRequest) -> ChatRequest:
    """Raises InvalidRequest where an input item is not what it should be."""
    wants_logprobs = "message.output_text.logprobs" in (body.include or [])
    if body.top_logprobs and not wants_logprobs:
        raise InvalidRequest('top_logprobs needs include: ["message.output_text.logprobs"]', param="top_logprobs")
    given = body.text.format if body.text else None
    text_format = JSONSchemaFormat(JSONSchema(given.name, given.schema)) if isinstance(given, JSONSchemaText) else given
    return ChatRequest(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
        seed=body.seed,
        stop=body.stop,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs,
        response_format=text_format,
        tools=[
            Tool(FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))
            for tool in body.tools or []
        ],
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
    )


def restated(error: InvalidRequest) -> InvalidRequest:
    """A refusal of the chat request by the names of the request that it was made of."""
    param = error.param
    for chat, here in _NAMES if param else ():
        param = param.replace(chat, here) if param else None
    return type(error)(error.message, param=param)


def _tool_choice(body: ResponsesRequest) -> ToolChoice | None:
    match body.tool_choice:
        case ChosenFunction(name=name):
            return NamedTool(ToolName(name))
        case ChosenTools(mode=mode, tools=tools):
            return AllowedTools(Allowance(mode, [NamedTool(ToolName(tool.name)) for tool in tools]))
        case other:
            return other


def _messages(body: ResponsesRequest) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        messages.append(SystemMessage(content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, UserMessage(content=body.input)]
    calls: list[GivenToolCall] = []
    for index, given in enumerate(body.input):
        # OpenAI lets a message go without its type, and nothing else.
        item: Any = convert({"type": "message", **given}, InputItem, f"input[{index}]")  # type: ignore[arg-type]
        if isinstance(item, InputCall):
            calls.append(GivenToolCall(item.call_id, GivenFunctionCall(item.name, item.arguments)))
            continue
        _add_calls(messages, calls)
        calls = []
        messages.append(_message(item))
    _add_calls(messages, calls)
    return messages


def _add_calls(messages: list[ChatMessage], calls: list[GivenToolCall]) -> None:
    """Calls that follow a text of the assistant are part of its message, as they were when it was given."""
    if not calls:
        return
    last = messages[-1] if messages else None
    if isinstance(last, AssistantMessage) and not last.tool_calls:
        messages[-1] = AssistantMessage(last.content, tool_calls=calls)
    else:
        messages.append(AssistantMessage(tool_calls=calls))


def _message(item: InputMessage | InputCallOutput) -> ChatMessage:
    if isinstance(item, InputCallOutput):
        return ToolMessage(content=_text(item.output), tool_call_id=item.call_id)
    text = _text(item.content)
    match item.role:
        case "assistant":
            return AssistantMessage(text)
        case "system":
            return SystemMessage(content=text)
        case "developer":
            return DeveloperMessage(content=text)
        case "user":
            return UserMessage(content=text)


def _text(content: str | list[InputText] | list[InputText | GivenText | GivenRefusal]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, GivenRefusal) else part.text for part in content)
