"""Which chunks of a stream are tokens, and when they came."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from loraplex.bench.load.stream import Answer, Usage


def event(chunk: dict[str, Any], newline: str = "\n") -> bytes:
    return f"data: {json.dumps(chunk)}{newline}{newline}".encode()


def chat(finish: str | None = None, **delta: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def completion(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}


def test_chunks_with_text_are_tokens_and_the_role_and_the_finish_are_not() -> None:
    answer = Answer()
    for time, chunk in enumerate(
        [chat(role="assistant", content=""), chat(content="a"), chat(content="b"), chat("stop"), USAGE]
    ):
        answer.feed(event(chunk), float(time))
    answer.feed(b"data: [DONE]\n\n", 9.0)
    assert answer.times == [1.0, 2.0]
    assert answer.ended == 3.0
    assert (answer.text, answer.finish_reason, answer.done) == ("ab", "stop", True)
    assert answer.usage == Usage(5, 2)


def test_a_role_with_text_is_a_token_and_so_is_a_last_chunk_with_text() -> None:
    answer = Answer()
    answer.feed(event(chat(role="assistant", content="a")), 1.0)
    answer.feed(event(chat("length", content="b")), 2.0)
    assert (answer.times, answer.ended) == ([1.0, 2.0], 2.0)


def test_a_token_without_text_in_the_middle_is_a_token() -> None:
    answer = Answer()
    for time, text in enumerate(["a", "", "b"]):
        answer.feed(event(completion(text)), float(time))
    assert answer.times == [0.0, 1.0, 2.0]


def test_reasoning_and_tool_calls_are_tokens() -> None:
    answer = Answer()
    answer.feed(event(chat(role="assistant", content=None)), 0.0)
    answer.feed(event(chat(reasoning_content="hm")), 1.0)
    answer.feed(event(chat(tool_calls=[{"index": 0, "function": {"arguments": "{"}}])), 2.0)
    assert answer.times == [1.0, 2.0]


def test_an_answer_of_nothing_but_its_end_has_ended() -> None:
    answer = Answer()
    answer.feed(event(completion("", "stop")), 4.0)
    assert (answer.times, answer.ended, answer.complete) == ([], 4.0, True)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_reads_may_cut_the_stream_anywhere(newline: str, size: int) -> None:
    content = b": ping" + newline.encode() * 2
    content += b"".join(event(completion(text), newline) for text in ("ä", "€", "🙂"))
    content += f"event: x{newline}data: [DONE]{newline}{newline}".encode()
    answer = Answer()
    counted = sum(answer.feed(content[start : start + size], 1.0) for start in range(0, len(content), size))
    assert counted == len(answer.times) == 3
    assert answer.text == "ä€🙂"
    assert answer.done


@pytest.mark.parametrize("error", [{"message": "It died", "code": "engine_failed"}, "It died"])
def test_an_error_event_is_kept(error: object) -> None:
    answer = Answer()
    answer.feed(event({"error": error}), 1.0)
    assert answer.error is not None
    assert answer.error.message == "It died"


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        Answer().feed(b"data: {nope\n\n", 0.0)
