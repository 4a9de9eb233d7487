"""When one sequence did what: measured once, told to the metrics and to the record of its request."""

from __future__ import annotations

import time

from loraplex.server.metrics import NO_KEY, Metrics
from loraplex.server.record import SequenceRecord, current


class Clock:
    """Times one sequence, from its request's arrival; every number is in seconds of time.perf_counter()."""

    def __init__(self, metrics: Metrics, adapter: str, arrived: float, prompt_tokens: int) -> None:
        request = current()
        labels = (metrics.lane, request.key_class if request else NO_KEY)
        self._arrived = arrived
        self._queue = metrics.queue.labels(adapter)
        self._first_token = metrics.time_to_first_token.labels(adapter)
        self._inter_token = metrics.inter_token_latency.labels(adapter)
        self._end_to_end = metrics.end_to_end_latency.labels(adapter)
        self._generated = metrics.generation_tokens.labels(adapter, *labels)
        self._cached = metrics.cached_tokens.labels(adapter, *labels)
        self._requests = metrics.requests
        self._adapter, self._labels = adapter, labels
        metrics.prompt_tokens.labels(adapter, *labels).inc(prompt_tokens)
        self._request = request
        self._record = SequenceRecord(prompt_tokens, time.perf_counter())
        if request:
            request.sequences.append(self._record)

    def admitted(self) -> None:
        """It has a slot."""
        self._record.admitted = time.perf_counter()
        self._queue.observe(self._record.admitted - self._arrived)

    def tokens(self, count: int, cached: int) -> None:
        """So many tokens came at once; `cached` prompt tokens needed no computing."""
        record = self._record
        if cached:
            self._cached.inc(cached)
            record.cached_tokens += cached
        if count == 0:
            return
        now = time.perf_counter()
        if record.last_token is None:
            record.first_token = now
            self._first_token.observe(now - self._arrived)
        else:
            self._inter_token.observe((now - record.last_token) / count)
        record.last_token = now
        record.tokens += count
        self._generated.inc(count)

    def failed(self, code: str | None) -> None:
        """It ends with an error; one in a stream is an event of an answer whose status is out already."""
        if self._request:
            self._request.code = code

    def end(self, how: str) -> None:
        self._record.ended = time.perf_counter()
        self._record.finish = how
        self._requests.labels(self._adapter, how, *self._labels).inc()
        self._end_to_end.observe(self._record.ended - self._arrived)
