"""When one sequence did what: measured once, told to the metrics and to the record of its request."""

from __future__ import annotations

import time

from loraplex.server.metrics import NO_KEY, Metrics
from loraplex.server.record import SequenceRecord, current


class Clocks:
    """The clocks of all sequences.

    Tokens are counted when those of all sequences are on their way to the clients, who need not wait for that.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._uncounted: list[tuple[Clock, int]] = []

    def start(self, adapter: str, arrived: float, prompt_tokens: int) -> Clock:
        return Clock(self._metrics, self, adapter, arrived, prompt_tokens)

    def came(self, clock: Clock, tokens: int) -> None:
        """So many came at once."""
        self._uncounted.append((clock, tokens))

    def count(self) -> None:
        """Count all that came."""
        now = time.perf_counter()
        for clock, tokens in self._uncounted:
            clock.count(tokens, now)
        self._uncounted.clear()


class Clock:
    """Times one sequence, from its request's arrival; every number is in seconds of time.perf_counter()."""

    def __init__(self, metrics: Metrics, clocks: Clocks, adapter: str, arrived: float, prompt_tokens: int) -> None:
        request = current()
        self._metrics = metrics
        self._clocks = clocks
        self._arrived = arrived
        self._queue = metrics.queue.labels(adapter)
        self._first_token = metrics.time_to_first_token.labels(adapter)
        self._inter_token = metrics.inter_token_latency.labels(adapter)
        self._end_to_end = metrics.end_to_end_latency.labels(adapter)
        self._adapter = adapter
        self._key_class = request.key_class if request else NO_KEY
        self._lane = ""
        self.answered_by(metrics.lane)
        self._request = request
        self._record = SequenceRecord(prompt_tokens, time.perf_counter())
        if request:
            request.sequences.append(self._record)

    def answered_by(self, lane: str) -> None:
        """The lane to count it under, which is the server's unless another one answers."""
        if lane == self._lane:
            return
        self._lane = lane
        labels = self._adapter, lane, self._key_class
        self._prompt = self._metrics.prompt_tokens.labels(*labels)
        self._cached = self._metrics.cached_tokens.labels(*labels)
        self._generated = self._metrics.generation_tokens.labels(*labels)

    def admitted(self) -> None:
        """It has a slot."""
        self._record.admitted = time.perf_counter()
        self._queue.observe(self._record.admitted - self._arrived)

    def tokens(self, count: int, cached: int) -> None:
        """So many tokens came at once; `cached` prompt tokens needed no computing."""
        if cached:
            self._cached.inc(cached)
            self._record.cached_tokens += cached
            if self._request:
                self._request.cached_tokens += cached
        if count:
            self._clocks.came(self, count)

    def count(self, tokens: int, now: float) -> None:
        """Count tokens that came at once, just before."""
        if self._request:
            self._request.take_tokens(tokens)
        record = self._record
        if record.last_token is None:
            record.first_token = now
            self._prompt.inc(record.prompt_tokens)
            self._first_token.observe(now - self._arrived)
        else:
            self._inter_token.observe((now - record.last_token) / tokens)
        record.last_token = now
        record.tokens += tokens
        self._generated.inc(tokens)

    def failed(self, code: str | None) -> None:
        """It ends with an error; one in a stream is an event of an answer whose status is out already."""
        if self._request:
            self._request.code = code

    def end(self, how: str) -> None:
        self._clocks.count()
        if self._record.first_token is None:
            self._prompt.inc(self._record.prompt_tokens)
        self._record.ended = time.perf_counter()
        self._record.finish = how
        self._metrics.requests.labels(self._adapter, how, self._lane, self._key_class).inc()
        self._end_to_end.observe(self._record.ended - self._arrived)
