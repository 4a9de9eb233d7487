"""Answers over the HTTP API of a running server, with the `openai` client (dependency group `test`)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from loraplex.build.demo.dialogues import Message

LONGEST = 200
"""Tokens of an answer at most."""


class Remote:
    """Callable as evaluation.Answer; `at_once` requests are in flight together. Raises openai.OpenAIError."""

    def __init__(self, url: str, *, at_once: int = 8) -> None:
        self._client = OpenAI(base_url=url, api_key="none")
        self._at_once = at_once

    def __call__(self, name: str, chats: Sequence[list[Message]]) -> list[str]:
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda chat: self._answer(name, chat), chats))

    def _answer(self, name: str, chat: list[Message]) -> str:
        completion = self._client.chat.completions.create(
            model=name,
            messages=cast("list[ChatCompletionMessageParam]", chat),
            temperature=0,
            max_tokens=LONGEST,
        )
        return completion.choices[0].message.content or ""
