"""Which sequence has which row of the KV cache, and what of its budget is given out.

Rows 0 .. decoding - 1 decode, the rows behind them are being prefilled; a row that leaves is filled by the last one.
What is left of the budget keeps the KV of finished sequences.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraplex.server.engine.forward import Forward
from loraplex.server.engine.prefix import SHORTEST, PrefixCache, common_prefix
from loraplex.server.engine.row_adapters import Adapter
from loraplex.server.engine.turns import Sequence

MAX_ROWS = 64


class Rows:
    """Owned by one thread. `budget` is tokens that the KV cache has memory for, `reserved` those that are given out."""

    def __init__(self, forward: Forward, budget: int) -> None:
        self._forward = forward
        self._rows: list[Sequence] = []
        self._kept: PrefixCache[Adapter | None] = PrefixCache()
        self._decoding = 0
        self.budget = budget
        self.reserved = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._rows)

    @property
    def decoding(self) -> list[Sequence]:
        """Those whose prompts are computed, from the first row on."""
        return self._rows[: self._decoding]

    def index(self, sequence: Sequence) -> int:
        return self._rows.index(sequence)

    def fits(self, sequence: Sequence) -> bool:
        """Whether there are a row and memory for its prompt and its whole answer."""
        return len(self._rows) < MAX_ROWS and self.reserved + sequence.longest <= self.budget

    def join(self, sequence: Sequence) -> None:
        """Give a sequence that fits a row; it holds it even where this raises OSError, for want of memory."""
        self.reserved += sequence.longest
        self._kept.find(sequence.adapter, sequence.prompt)  # used last, so evicted last
        while self.reserved + self._kept.tokens > self.budget and self._kept.evict():
            pass
        self._rows.append(sequence)
        held = [row.filled for row in self._rows]
        self._forward.reserve(len(self._rows), max(row.longest for row in self._rows), held)

    def reuse(self, sequence: Sequence) -> None:
        """Take over the KV of a sequence that begins the same under the same adapter, but for the last token."""
        row, prompt, kv = self._rows.index(sequence), sequence.prompt[:-1], self._forward.kv
        length, found = self._kept.find(sequence.adapter, prompt)
        source = None
        for index, other in enumerate(self._rows):
            if other is not sequence and other.adapter is sequence.adapter and other.filled > length:
                common = common_prefix(other.tokens, prompt)
                if common > length and common >= SHORTEST:
                    length, source = common, index
        if source is not None:
            kv.copy(source, row, length)
        elif length:
            kv.write(row, found, length)
        sequence.filled = sequence.cached = length

    def begin_decoding(self, sequence: Sequence) -> None:
        """Its prompt is computed."""
        row, other = self._rows.index(sequence), self._decoding
        if row != other:
            rows = self._rows
            self._forward.kv.swap(row, other, max(rows[row].filled, rows[other].filled))
            rows[row], rows[other] = rows[other], rows[row]
        self._decoding += 1

    def leave(self, sequence: Sequence, *, keep: bool) -> None:
        """Free the sequence's row; if `keep`, its KV stays for a prompt that begins the same."""
        row = self._rows.index(sequence)
        self.reserved -= sequence.longest
        if keep:
            self._keep(sequence, row)
        if row < self._decoding:
            self._decoding -= 1
            self._move(self._decoding, row)
            row = self._decoding
        last = len(self._rows) - 1
        self._move(last, row)
        self._rows.pop()
        if self._rows:
            self._forward.kv.release(last)
        else:
            self._forward.release()

    def forget(self, adapter: Adapter) -> None:
        """Keep nothing of what an adapter computed."""
        self._kept.forget(adapter)

    def _keep(self, sequence: Sequence, row: int) -> None:
        tokens, owner = sequence.tokens, sequence.adapter
        if len(tokens) < SHORTEST or self._kept.covers(owner, tokens):
            return
        while self.reserved + self._kept.tokens + len(tokens) > self.budget:
            if not self._kept.evict():
                return
        self._kept.keep(owner, tokens, self._forward.kv.read(row, len(tokens)))

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._rows[target] = self._rows[source]
            self._forward.kv.copy(source, target, self._rows[target].filled)
