"""What a request's tools mean: what the model is told, what its answer may be, and the calls in its answer."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from loraplex.server.api.conversation import AllowedTools, FunctionDefinition, NamedTool
from loraplex.server.api.guides import check, guide_of
from loraplex.server.api.schema import ChatRequest
from loraplex.server.engine.messages import Guide
from loraplex.server.errors import InvalidRequest
from loraplex.server.model import Model
from loraplex.server.serving import Serving
from loraplex.server.text.tool_format import GENERIC, Callable, ToolFormat, grammar

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""What OpenAI makes of a function without parameters."""


class Calling(Struct, frozen=True):
    """How one request's answers may call tools."""

    format: ToolFormat
    tools: list[dict[str, Any]]
    """For the template."""
    guide: Guide
    hidden: frozenset[int]
    """Tokens without text."""


async def calling(server: Serving, model: Model, body: ChatRequest) -> Calling | None:
    """None where no tool may be called. Raises InvalidRequest and UnsupportedParameter."""
    names = _names(body)
    choice = body.tool_choice or ("auto" if names else "none")
    allowed, required = names, choice == "required"
    parallel = body.parallel_tool_calls is not False
    match choice:
        case NamedTool(function=function):
            allowed, required = [_known(function.name, names, "tool_choice.function.name")], True
            parallel = False  # one call, as everyone's clients expect who name the function
        case AllowedTools(allowed_tools=allowance):
            allowed = [
                _known(tool.function.name, names, f"tool_choice.allowed_tools.tools[{index}].function.name")
                for index, tool in enumerate(allowance.tools)
            ]
            required = allowance.mode == "required"
    if required and not names:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    if choice == "none" or not names:
        return None
    wanted = model.template.tools if model.template else GENERIC
    text = _text_schema(body)
    if text is not None and not required and wanted.at_start:
        raise InvalidRequest(
            "This model's calls cannot be told from a JSON answer: set tool_choice to none, or leave response_format "
            "out",
            param="response_format",
        )
    tools = [tool.function for tool in body.tools or []]
    callables = [_callable(tool, index) for index, tool in enumerate(tools) if tool.name in allowed]
    try:
        lark = grammar(
            wanted,
            callables,
            server.text.units,
            required=required,
            parallel=parallel,
            text=text,
            visible=[token for token in server.text.units.values() if token not in server.text.special],
        )
    except RecursionError:
        raise InvalidRequest("a schema in tools is nested too deeply", param="tools") from None
    found = Guide("grammar", lark)
    await check(server, found, "tools")
    shown = frozenset(wanted.markers(server.text.units).values())
    return Calling(wanted, [plain(tool) for tool in tools], found, server.text.special - shown)


def _names(body: ChatRequest) -> list[str]:
    names: list[str] = []
    for index, tool in enumerate(body.tools or []):
        if tool.function.name in names:
            raise InvalidRequest(
                f"two tools are named {tool.function.name!r}: give each a name of its own",
                param=f"tools[{index}].function.name",
            )
        names.append(tool.function.name)
    return names


def _known(name: str, names: list[str], param: str) -> str:
    if name not in names:
        raise InvalidRequest(f"tools has no function {name!r}: it has {', '.join(names) or 'none'}", param=param)
    return name


def _text_schema(body: ChatRequest) -> str | None:
    """The JSON schema of an answer that calls no tool."""
    found = guide_of(body)
    if found is None:
        return None
    param, wanted = found
    if param != "response_format":
        raise InvalidRequest(f"{param} and tools both say what the answer must be: send one", param=param)
    return wanted.text


def _callable(tool: FunctionDefinition, index: int) -> Callable:
    schema = dict(NO_ARGUMENTS if tool.parameters is None else tool.parameters)
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequest(
            f"arguments are an object, so the schema must have type object, not {schema['type']!r}",
            param=f"tools[{index}].function.parameters",
        )
    return Callable(tool.name, schema, tool.strict is True)


def plain(tool: FunctionDefinition) -> dict[str, Any]:
    """A tool as templates take it."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = NO_ARGUMENTS if tool.parameters is None else tool.parameters
    return {"type": "function", "function": function}
