"""Spans as a collector receives them, over OTLP/HTTP."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server.conftest import TinyBundle
from tests.server.process import serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Keeps every span that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Any] = []
        self.services: set[str] = set()


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.services |= {
                    each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                }
                for scope in resource.scope_spans:
                    self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_is_a_span_with_one_for_each_stretch_of_it(
    tiny: TinyBundle, tmp_path: Path, collector: Collector
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    with serving(tiny.folder, tmp_path / "log", "--otlp-endpoint", endpoint) as server:
        ask = server.client.completions.create
        ask(
            model="small",
            prompt="w11 w12",
            max_tokens=5,
            temperature=0,
            extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced"},
        )
        list(ask(model="large", prompt=[10], max_tokens=3, n=2, stream=True, temperature=0))
        with pytest.raises(openai.NotFoundError):
            ask(model="nobody", prompt=[10])
        server.get("/health")
        assert server.stop() == 0  # what is left is sent at the end
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert collector.services == {"loraplex"}

    roots = [span for span in collector.spans if span.name == "POST /v1/completions"]
    assert len(roots) == 3
    assert len(collector.spans) == 3 + 3 + 6
    (root,) = (span for span in roots if attributes(span)["loraplex.request_id"] == "traced")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    said = attributes(root)
    assert said["gen_ai.request.model"] == "small"
    assert said["http.response.status_code"] == 200
    assert said["gen_ai.usage.output_tokens"] == 5
    assert not any("w11" in str(value) for value in said.values())

    children = sorted(
        (span for span in collector.spans if span.parent_span_id == root.span_id), key=lambda s: s.start_time_unix_nano
    )
    assert [span.name for span in children] == ["queue", "prefill", "decode"]
    assert all(span.trace_id == root.trace_id for span in children)
    for span, following in pairwise(children):
        assert span.end_time_unix_nano == following.start_time_unix_nano
    assert root.start_time_unix_nano <= children[0].start_time_unix_nano
    assert children[-1].end_time_unix_nano <= root.end_time_unix_nano
    (refused,) = (span for span in roots if attributes(span).get("error.type"))
    assert attributes(refused)["error.type"] == "model_not_found"


def test_a_collector_that_is_not_there_costs_nobody_anything(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log", "--otlp-endpoint", "http://127.0.0.1:9") as server:
        assert server.client.completions.create(model="small", prompt=[10], max_tokens=2).choices


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = "import loraplex.server.run, sys; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_without_the_extra_an_endpoint_is_refused_in_one_line(tiny: TinyBundle) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from loraplex.server.cli import app; "
        f"app(['serve', {str(tiny.folder)!r}, '--otlp-endpoint', 'http://localhost:4318'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.strip() == "loraplex: --otlp-endpoint needs the extra: pip install loraplex[otel]"
