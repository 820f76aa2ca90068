"""A trace from a request to the fit it causes, received by a collector."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of_trace(self, trace: str) -> dict[str, object]:
        return {span.name: span for span in list(self.spans) if span.trace_id.hex() == trace}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_fit_belongs_to_the_trace_of_the_request_that_caused_it(
    start_service, collector, make_spec
) -> None:
    traced = start_service(
        BO_TRACING="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
    )
    with traced.http() as http:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        study = http.post("/v1/studies", json=make_spec(), headers=headers).json()["id"]
    wanted = {"POST /v1/studies", "bo.advance", "bo.propose"}
    deadline = time.monotonic() + 60
    while not wanted <= (spans := collector.of_trace(TRACE)).keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert wanted <= spans.keys()
    assert spans["POST /v1/studies"].parent_span_id.hex() == PARENT
    assert spans["bo.advance"].parent_span_id == spans["POST /v1/studies"].span_id
    assert spans["bo.propose"].parent_span_id == spans["bo.advance"].span_id
    attributes = {a.key: a.value.string_value for a in spans["bo.advance"].attributes}
    assert attributes["bo.study"] == study
