"""Log probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from loraplex.server.api.schema import ChatLogprob, ChatLogprobs, CompletionLogprobs, TokenLogprob
from loraplex.server.engine.messages import Logprobs

LEAST = -9999.0
"""What OpenAI's API says of a token that cannot come; JSON has no infinities."""


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> ChatLogprobs | None:
    """None where log probabilities were not asked for."""
    if not logprobs:
        return None
    content = []
    for token, found in zip(tokens, logprobs, strict=True):
        text = _text(tokenizer, token)
        top = [
            TokenLogprob(each, max(value, LEAST), list(each.encode()))
            for each, value in ((_text(tokenizer, other), value) for other, value in found.top)
        ]
        content.append(ChatLogprob(text, max(found.chosen, LEAST), list(text.encode()), top))
    return ChatLogprobs(content)


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[Logprobs], offsets: Sequence[int]
) -> CompletionLogprobs | None:
    """`offsets` is the length of the answer before each token. None where log probabilities were not asked for."""
    if not logprobs:
        return None
    texts = [_text(tokenizer, token) for token in tokens]
    top: list[dict[str, float] | None] = [
        {_text(tokenizer, token): max(value, LEAST) for token, value in [*found.top, (chosen, found.chosen)]}
        for chosen, found in zip(tokens, logprobs, strict=True)
    ]
    return CompletionLogprobs(texts, [max(found.chosen, LEAST) for found in logprobs], top, list(offsets))


def _text(tokenizer: Tokenizer, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False))
