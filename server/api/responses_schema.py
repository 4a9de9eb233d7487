"""What POST /v1/responses gets and answers (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from loraplex.server.api.conversation import MAX_TOOLS, FunctionName
from loraplex.server.api.schema import (
    MAX_TOP_LOGPROBS,
    Bias,
    ChatLogprob,
    JSONObjectFormat,
    ModelName,
    Penalty,
    Stop,
    TextFormat,
    TokenId,
    TokenLimit,
)

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: Any = None
    """A hint for OpenAI's cache."""


class GivenText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """Text of an earlier answer, sent back."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] | None = None
    parsed: Any = None
    """OpenAI's client's reading of it."""


class GivenRefusal(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class InputMessage(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="message", kw_only=True):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[InputText | GivenText | GivenRefusal]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call", kw_only=True):
    call_id: str
    name: FunctionName
    arguments: str
    id: str | None = None
    status: str | None = None
    parsed_arguments: Any = None
    """OpenAI's client's reading of them."""
    caller: None = None
    namespace: None = None
    in_background: Literal[False] | None = field(name="async", default=None)
    async_: None = None
    """What OpenAI's client calls that one when it makes a dict of a call."""


class InputCallOutput(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output", kw_only=True
):
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: str | None = None


InputItem = InputMessage | InputCall | InputCallOutput


class FunctionTool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function", kw_only=True):
    name: FunctionName
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ChosenFunction(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str


class ChosenTools(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Meta(min_length=1)]


class JSONSchemaText(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema", kw_only=True
):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: TextFormat | JSONObjectFormat | JSONSchemaText | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/responses. `seed` to `timeout` are not OpenAI's."""

    model: ModelName | None = None
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    """A text, or items: message, function_call, function_call_output."""
    instructions: str | None = None
    max_output_tokens: TokenLimit = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | ChosenTools | None = None
    parallel_tool_calls: bool | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    prompt: None = None
    access_programs: Any = None
    background: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    previous_response_id: Any = None
    reasoning: Any = None
    service_tier: Any = None
    store: Any = None
    truncation: Any = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    stop: Stop = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class OutputMessage(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputCall(Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputCall


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class ModelResponse(Struct, frozen=True, kw_only=True):
    """The answer, and in a stream what there is of it. It is stored nowhere.

    Fields that stand for nothing here are there too: Open Responses requires them
    (https://www.openresponses.org/specification).
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    background: Literal[False] = False
    store: Literal[False] = False
    reasoning: None = None
    prompt_cache_key: str | None
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    frequency_penalty: float
    presence_penalty: float
    temperature: float
    text: TextOptions
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | ChosenTools
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    user: str | None
