"""Fields that OpenAI's or vLLM's API has and this server cannot honour: accepted with a value that means "not used"."""

from __future__ import annotations

from msgspec import Struct

from loraplex.server.errors import UnsupportedParameter

NOT_USED: dict[str, tuple[object, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None, "medium"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "web_search_options": (None,),
    "access_programs": (None,),
    "background": (None, False),
    "context_management": (None,),
    "conversation": (None,),
    "image": (None,),
    "max_tool_calls": (None,),
    "previous_response_id": (None,),
    "reasoning": (None, {}),
    "truncation": (None, "disabled"),
    "best_of": (None, 1),
    "prompt_logprobs": (None,),
    "suffix": (None, ""),
}
"""Values with which a field changes nothing."""
INSTEAD = {
    "functions": "send tools",
    "prompt_logprobs": "send a completion with echo and logprobs",
    "function_call": "send tool_choice",
    "store": "nothing is stored",
    "previous_response_id": "nothing is stored, so send the whole conversation as input",
    "conversation": "nothing is stored, so send the whole conversation as input",
}
"""What to do where leaving the field out is not all."""


def refuse_unsupported(request: Struct) -> None:
    """Raises UnsupportedParameter for the first field that would change something."""
    for name, neutral in NOT_USED.items():
        value = getattr(request, name, None)
        if not any(type(value) is type(accepted) and value == accepted for accepted in neutral):
            raise UnsupportedParameter(f"{name} is not supported: {INSTEAD.get(name, 'leave it out')}", param=name)
