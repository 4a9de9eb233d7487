"""What a completion begins with where its prompt is echoed: its text, and the log probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from loraplex.server.api.logprobs import completion_logprobs
from loraplex.server.api.schema import CompletionLogprobs, CompletionRequest
from loraplex.server.engine.messages import Logprobs
from loraplex.server.generation import Job
from loraplex.server.serving import Serving
from loraplex.server.text.detokenizer import Detokenizer
from loraplex.server.text.tokenizer import Text


class Echo(Struct, frozen=True):
    """The prompt of one choice, as it was sent, or the text of its token ids."""

    text: str
    tokens: list[int]
    as_sent: bool
    skip_special: bool

    def logprobs(self, text: Text, found: Sequence[Logprobs]) -> CompletionLogprobs:
        """`found` has an item for each token but the first, of which nothing can be said."""
        hidden = None if self.as_sent or self.skip_special else frozenset[int]()
        detokenizer = Detokenizer(text.tokenizer, hidden=hidden)
        offsets, length = [], 0
        for token in self.tokens:
            offsets.append(length)
            length += len(detokenizer.add(token))
        first = completion_logprobs(text.tokenizer, self.tokens[:1], [Logprobs(0.0, [])], offsets[:1])
        rest = completion_logprobs(text.tokenizer, self.tokens[1:], found, offsets[1:])
        assert first is not None
        return joined(CompletionLogprobs(first.tokens, [None], [None], first.text_offset), rest)


def joined(one: CompletionLogprobs, other: CompletionLogprobs | None) -> CompletionLogprobs:
    """Those of one text and of another that follows it."""
    if other is None:
        return one
    return CompletionLogprobs(
        one.tokens + other.tokens,
        one.token_logprobs + other.token_logprobs,
        one.top_logprobs + other.top_logprobs,
        one.text_offset + other.text_offset,
    )


def echoes(server: Serving, body: CompletionRequest, jobs: list[Job]) -> list[Echo] | None:
    """What each choice begins with; None where it is only the answer."""
    if not body.echo:
        return None
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    count, skip = body.n or 1, body.skip_special_tokens is not False
    found = []
    for index, job in enumerate(jobs):
        sent = given[min(index // count, len(given) - 1)]
        as_sent = isinstance(sent, str)
        text = sent if isinstance(sent, str) else server.text.tokenizer.decode(job.prompt, skip_special_tokens=skip)
        found.append(Echo(str(text), job.prompt, as_sent, skip))
    return found
