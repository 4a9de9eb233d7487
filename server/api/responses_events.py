"""The events of a streamed response
(https://platform.openai.com/docs/api-reference/responses-streaming)."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from loraplex.server.api.reading import Reading
from loraplex.server.api.responses_schema import (
    ModelResponse,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    Status,
)
from loraplex.server.api.schema import ChatLogprob
from loraplex.server.text.tool_parser import ArgumentsText, CallBegun, Piece


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float


class DeltaLogprob(Struct, frozen=True):
    """Without the bytes that the finished text has."""

    token: str
    logprob: float
    top_logprobs: list[TopLogprob]


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int


class OfResponse(Event, frozen=True, kw_only=True):
    response: ModelResponse


class Created(OfResponse, frozen=True, tag="response.created"): ...


class InProgress(OfResponse, frozen=True, tag="response.in_progress"): ...


class Completed(OfResponse, frozen=True, tag="response.completed"): ...


class Incomplete(OfResponse, frozen=True, tag="response.incomplete"): ...


class Failed(OfResponse, frozen=True, tag="response.failed"): ...


class OfItem(Event, frozen=True, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(OfItem, frozen=True, tag="response.output_item.added"): ...


class ItemDone(OfItem, frozen=True, tag="response.output_item.done"): ...


class InItem(Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int


class InPart(InItem, frozen=True, kw_only=True):
    content_index: int = 0


class OfPart(InPart, frozen=True, kw_only=True):
    part: OutputText


class PartAdded(OfPart, frozen=True, tag="response.content_part.added"): ...


class PartDone(OfPart, frozen=True, tag="response.content_part.done"): ...


class TextDelta(InPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[DeltaLogprob]


class TextDone(InPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[DeltaLogprob]


class ArgumentsDelta(InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    arguments: str


EVENTS = (
    Created,
    InProgress,
    ItemAdded,
    PartAdded,
    TextDelta,
    TextDone,
    PartDone,
    ArgumentsDelta,
    ArgumentsDone,
    ItemDone,
    Completed,
    Incomplete,
    Failed,
)


class Writer:
    """Pieces of an answer to items, and to the events that tell of them."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        """Those so far; all but the last are whole."""
        self._numbers = itertools.count()
        self._open = False

    def number(self) -> int:
        """The next event's sequence number."""
        return next(self._numbers)

    def write(self, piece: Piece, reading: Reading, logprobs: list[ChatLogprob]) -> Iterator[Event]:
        """What a piece of `reading` adds."""
        match piece:
            case CallBegun():
                yield from self._close("completed")
                yield self._add(OutputCall(_id("fc"), "in_progress", reading.call_id(), piece.name, ""))
            case ArgumentsText():
                call = self.items[-1]
                assert isinstance(call, OutputCall)
                self.items[-1] = replace(call, arguments=call.arguments + piece.text)
                yield ArgumentsDelta(
                    sequence_number=self.number(), item_id=call.id, output_index=self._last, delta=piece.text
                )
            case _:
                yield from self._text(piece, logprobs)

    def end(self, status: Status) -> Iterator[Event]:
        """No more pieces come. An answer that says nothing is an empty message."""
        if not self.items:
            yield from self._text("", [])
        yield from self._close(status)

    def _text(self, text: str, logprobs: list[ChatLogprob]) -> Iterator[Event]:
        if not self._open:
            message = OutputMessage(_id("msg"), "in_progress", [])
            yield self._add(message)
            part = OutputText("")
            self.items[-1] = replace(message, content=[part])
            yield PartAdded(sequence_number=self.number(), item_id=message.id, output_index=self._last, part=part)
        found = self.items[-1]
        assert isinstance(found, OutputMessage)
        (part,) = found.content
        self.items[-1] = replace(found, content=[OutputText(part.text + text, [], part.logprobs + logprobs)])
        if text or logprobs:
            yield TextDelta(
                sequence_number=self.number(),
                item_id=found.id,
                output_index=self._last,
                delta=text,
                logprobs=_short(logprobs),
            )

    def _add(self, item: OutputItem) -> Event:
        self.items.append(item)
        self._open = True
        return ItemAdded(sequence_number=self.number(), output_index=self._last, item=item)

    def _close(self, status: Status) -> Iterator[Event]:
        """End the item that is open, if one is."""
        if not self._open:
            return
        self._open = False
        item = self.items[-1] = replace(self.items[-1], status=status)
        if isinstance(item, OutputCall):
            yield ArgumentsDone(
                sequence_number=self.number(), item_id=item.id, output_index=self._last, arguments=item.arguments
            )
        else:
            (part,) = item.content
            yield TextDone(
                sequence_number=self.number(),
                item_id=item.id,
                output_index=self._last,
                text=part.text,
                logprobs=_short(part.logprobs),
            )
            yield PartDone(sequence_number=self.number(), item_id=item.id, output_index=self._last, part=part)
        yield ItemDone(sequence_number=self.number(), output_index=self._last, item=item)

    @property
    def _last(self) -> int:
        return len(self.items) - 1


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _short(logprobs: list[ChatLogprob]) -> list[DeltaLogprob]:
    return [
        DeltaLogprob(each.token, each.logprob, [TopLogprob(top.token, top.logprob) for top in each.top_logprobs])
        for each in logprobs
    ]
