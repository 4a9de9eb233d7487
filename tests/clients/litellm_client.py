"""LiteLLM against a server; run by `python -m tests.clients`.

python litellm_client.py URL_OF_THE_DEMO URL_OF_A_MODEL_WITH_TOOLS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices

import litellm

litellm.suppress_debug_info = True

ASK = [{"role": "user", "content": "What should I see in Paris?"}]
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "What time it is",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def main(demo: str, tools: str) -> None:
    for provider in ("openai", "hosted_vllm"):
        check(provider, demo, tools)
    there = {"api_base": f"{demo}/v1", "api_key": "none", "temperature": 0}
    plain = litellm.text_completion(model="text-completion-openai/travel", prompt="Paris is", max_tokens=8, **there)
    assert plain.choices[0].text
    answer = litellm.completion(model="openai/travel", messages=ASK, **there)
    response = litellm.responses(model="openai/travel", input=ASK[0]["content"], **there)
    assert response.output[0].content[0].text == answer.choices[0].message.content
    try:
        litellm.completion(model="openai/nobody", messages=ASK, **there)
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("a model that is not there was found")
    try:
        litellm.completion(model="openai/travel", messages=ASK, max_tokens=10**6, **there)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a context that is too long was accepted")


def check(provider: str, demo: str, tools: str) -> None:
    there: dict[str, Any] = {"api_base": f"{demo}/v1", "api_key": "none", "temperature": 0}
    model = f"{provider}/travel"
    answer = litellm.completion(model=model, messages=ASK, timeout=60, **there)
    assert "Eiffel Tower" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0
    chunks = list(litellm.completion(model=model, messages=ASK, stream=True, **there))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    asynchronous = asyncio.run(litellm.acompletion(model=model, messages=ASK, **there))
    assert asynchronous.choices[0].message.content == answer.choices[0].message.content
    there |= {"api_base": f"{tools}/v1", "temperature": 1, "seed": 3, "max_tokens": 100}
    request: dict[str, Any] = {"model": f"{provider}/bytes", "messages": ASK, "tools": [TIME], **there}
    asked = litellm.completion(**request, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_time", "content": "noon"}
    after = litellm.completion(**request | {"messages": [*ASK, asked.message, result]}, tool_choice="none")
    assert after.choices[0].message.content
    named = {"type": "function", "function": {"name": "get_time"}}
    streamed = list(litellm.completion(**request, tool_choice=named, stream=True))
    whole = litellm.stream_chunk_builder(streamed)
    assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments)["zone"] in ("UTC", "CET")


if __name__ == "__main__":
    main(*sys.argv[1:3])
