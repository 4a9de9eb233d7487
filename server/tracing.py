"""Traces over OTLP (https://opentelemetry.io/docs/specs/otlp), an extra: nothing of it is imported without an endpoint.

A request is a span with a child for each stretch of each of its sequences: queue, prefill, decode. Spans are made when
the request has ended, of the times in its record, so that tracing costs nothing while tokens come. Attributes are named
as in OpenTelemetry's conventions for HTTP and generative AI; there are no prompts among them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loraplex.server.errors import TracingUnavailable
from loraplex.server.record import RequestRecord, SequenceRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context

SEND_SECONDS = 3
"""For a batch of spans, tries included. So long may a collector that is down hold up a server that stops."""

Attributes = dict[str, str | int | list[str]]


class Tracing:
    """Exports spans from a thread of its own, to `endpoint`/v1/traces."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a base URL. Raises TracingUnavailable."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise TracingUnavailable("--otlp-endpoint needs the extra: pip install loraplex[otel]") from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "loraplex"}))
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("loraplex")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def export(self, record: RequestRecord, route: str) -> None:
        """Hand over the spans of a request that has just ended."""
        now = time.perf_counter()
        # Read once, so that what follows in a trace on something else begins where that ends.
        epoch = time.time_ns() - int(now * 1e9)
        parent = self._propagator.extract(record.traceparent)
        span = self._tracer.start_span(
            f"{record.method} {route}",
            parent,
            self._server,
            _request_attributes(record, route),
            start_time=_nanoseconds(record.arrived, epoch),
        )
        context = self._in_context(span, parent)
        for index, sequence in enumerate(record.sequences):
            self._export_sequence(sequence, index, context, now, epoch)
        if record.status >= 500:
            span.set_status(self._failed)
        span.end(_nanoseconds(now, epoch))

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._provider.shutdown()

    def _export_sequence(self, sequence: SequenceRecord, index: int, context: Context, now: float, epoch: int) -> None:
        end = sequence.ended or now
        marks = [sequence.entered, sequence.admitted, sequence.first_token, end]
        attributes: Attributes = {
            "loraplex.sequence": index,
            "gen_ai.usage.input_tokens": sequence.prompt_tokens,
            "gen_ai.usage.output_tokens": sequence.tokens,
            "loraplex.cached_tokens": sequence.cached_tokens,
            "gen_ai.response.finish_reasons": [sequence.finish],
        }
        for name, start, stop in zip(("queue", "prefill", "decode"), marks, marks[1:], strict=False):
            if start is not None:
                span = self._tracer.start_span(
                    name, context, attributes=attributes, start_time=_nanoseconds(start, epoch)
                )
                span.end(_nanoseconds(end if stop is None else stop, epoch))


def _request_attributes(record: RequestRecord, route: str) -> Attributes:
    attributes: Attributes = {
        "http.request.method": record.method,
        "http.route": route,
        "http.response.status_code": record.status,
        "loraplex.request_id": record.id,
    }
    if record.key:
        attributes["loraplex.key"] = record.key.name
    if record.code:
        attributes["error.type"] = record.code
    if record.adapter:
        attributes |= {
            "gen_ai.provider.name": "loraplex",
            "gen_ai.request.model": record.adapter,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.generated_tokens,
            "gen_ai.response.finish_reasons": record.finishes(),
        }
    return attributes


def _nanoseconds(moment: float, epoch: int) -> int:
    """Unix time of a moment of time.perf_counter(), whose zero is `epoch`."""
    return epoch + int(moment * 1e9)
