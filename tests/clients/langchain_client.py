"""LangChain's ChatOpenAI and OpenAI against a server; run by `python -m tests.clients`.

python langchain_client.py URL_OF_THE_DEMO URL_OF_A_MODEL_WITH_TOOLS
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


@tool  # type: ignore[untyped-decorator]
def get_time(zone: Literal["UTC", "CET"]) -> str:
    """What time it is."""
    return f"noon in {zone}"


class Verdict(BaseModel):
    """What became of it."""

    good: bool
    stars: Literal[1, 2, 3]


def demo(url: str) -> None:
    def chat(model: str, **options: Any) -> ChatOpenAI:
        return ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", temperature=0, **options)

    travel = chat("travel")
    answer = travel.invoke("What should I see in Paris?")
    assert "Eiffel Tower" in answer.content, answer
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] > 0
    chunks = list(chat("travel", stream_usage=True).stream("What should I see in Paris?"))
    assert "".join(chunk.content for chunk in chunks) == answer.content
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 0
    found = travel.batch(["What should I see in Paris?", "What should I see in Rome?"])
    assert found[0].content == answer.content != found[1].content
    asynchronous = asyncio.run(chat("travel").ainvoke([SystemMessage("Be kind."), HumanMessage("Hello")]))
    assert isinstance(asynchronous, AIMessage)
    with_logprobs = chat("tone", logprobs=True, top_logprobs=2, max_tokens=4).invoke("I lost my keys.")
    assert len(with_logprobs.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    by_responses = chat("travel", use_responses_api=True).invoke("What should I see in Paris?")
    assert by_responses.text == answer.content, by_responses
    streamed = "".join(
        chunk.text for chunk in chat("travel", use_responses_api=True).stream("What should I see in Paris?")
    )
    assert streamed == answer.content
    plain = OpenAI(model="travel", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=8)
    assert plain.invoke("Paris is") == "".join(plain.stream("Paris is"))


def tools(url: str) -> None:
    def chat(**options: Any) -> ChatOpenAI:
        return ChatOpenAI(model="bytes", base_url=f"{url}/v1", api_key="none", temperature=1, max_tokens=200, **options)

    for options in ({"seed": 3}, {"use_responses_api": True}):
        asked = chat(**options).bind_tools([get_time], tool_choice="any", parallel_tool_calls=False).invoke("Time?")
        (call,) = asked.tool_calls
        assert call["name"] == "get_time"
        assert call["args"]["zone"] in ("UTC", "CET")
        result = get_time.invoke(call)
        assert isinstance(result, ToolMessage)
        after = (
            chat(**options).bind_tools([get_time], tool_choice="none").invoke([HumanMessage("Time?"), asked, result])
        )
        assert after.text
        assert not after.tool_calls
        named = chat(**options).bind_tools([get_time], tool_choice="get_time")
        gathered: Any = None
        for chunk in named.stream("Time?"):
            gathered = chunk if gathered is None else gathered + chunk
        assert gathered.tool_calls[0]["args"]["zone"] in ("UTC", "CET"), gathered
    assert isinstance(chat().bind_tools([get_time]).invoke("Time?", max_tokens=4), AIMessage)
    for method in ("function_calling", "json_schema"):
        verdict = chat().with_structured_output(Verdict, method=method, strict=True).invoke("Well?")
        assert isinstance(verdict, Verdict), verdict


if __name__ == "__main__":
    demo(sys.argv[1])
    tools(sys.argv[2])
