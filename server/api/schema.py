"""What clients send and get, as typed structs (https://platform.openai.com/docs/api-reference).

Unknown fields are refused. Fields that are known but not supported are accepted with the value that means "not used",
and refused otherwise: nothing that changes an answer is ever ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from loraplex.server.api.conversation import ChatMessage, ToolCall, ToolCallDelta, ToolChoice, Tools

MAX_CHOICES = 128

ModelName = Annotated[str, Meta(max_length=256)]
StopString = Annotated[str, Meta(min_length=1)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=4)] | None
TokenLimit = Annotated[int, Meta(ge=1, le=2**31 - 1)] | None
Penalty = Annotated[float, Meta(ge=-2, le=2)] | None
TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
MAX_TOP_LOGPROBS = 20
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1024)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    """A last chunk without choices has the usage; the others have null."""
    continuous_usage_stats: bool = False
    """Every chunk has the usage so far (vLLM's extension)."""
    include_obfuscation: Literal[False] | None = None


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must be, by one of the fields (vLLM's extension)."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Generate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that chat completions and completions share."""

    model: ModelName | None = None
    """Left out, it is --default-model; a server without one refuses."""
    max_tokens: TokenLimit = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """0 and -1 leave every token in (vLLM's extension)."""
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    user: str | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: Choices | None = None
    structured_outputs: StructuredOutputs | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    """min_p to include_stop_str_in_output are vLLM's extensions; a grammar is in llguidance's Lark."""
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None
    """Seconds from the request's arrival to the end of its answer (LiteLLM's extension)."""


class JSONSchema(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class JSONObjectFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    pass


class JSONSchemaFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: JSONSchema


class ChatRequest(Generate, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: TokenLimit = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | JSONObjectFormat | JSONSchemaFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as Qwen3's enable_thinking (vLLM's extension)."""
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    moderation: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    service_tier: Any = None
    store: Any = None
    web_search_options: Any = None
    prompt_logprobs: Any = None


class CompletionRequest(Generate, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/completions. A list holds several prompts, or the token ids of one."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0 with echo only: the prompt and what the model thinks of it."""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    """The answer's text begins with the prompt."""
    best_of: Any = None
    prompt_logprobs: Any = None
    suffix: Any = None


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int
    """Prompt tokens whose keys and values were there already."""


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogprob(Struct, frozen=True):
    """One of the likeliest tokens. `bytes` are UTF-8 of its text."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """Four lists of the same length, an item a token. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where in the text a token's own begins, in characters."""


class AnswerMessage(Struct, frozen=True):
    content: str | None
    """None where the answer is calls and nothing else."""
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: list[Any] = []
    """None ever: of pages that were searched for."""
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Struct, frozen=True, kw_only=True):
    """Body of an answer, and of each chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str


class ModelCard(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["loraplex"] = "loraplex"
    root: str
    parent: str | None
    max_model_len: int
    description: str


class ModelList(Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class ErrorBody(Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(Struct, frozen=True):
    error: ErrorBody
