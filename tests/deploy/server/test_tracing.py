"""Traces reach a collector: a stand-in that speaks OTLP over HTTP and keeps what it gets."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server_process import serving

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A stand-in for a collector; return its address and the spans that it got."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its own name
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def infer(url: str, name: str, body: bytes, **headers: str) -> int:
    request = urllib.request.Request(f"{url}/v2/models/{name}/infer", body, {"Inference-Header-Content-Length": "0", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_span_continues_the_clients_trace(finished_run: Path, tmp_path: Path, collector: tuple[str, list[Any]]) -> None:
    address, spans = collector
    with serving(finished_run / "bundle", tmp_path, "--runtime", "onnxruntime-cpu", "--otlp", address) as server:
        assert infer(server.url, server.name, bytes(64), traceparent=PARENT) == 200
        assert infer(server.url, server.name, bytes(63)) == 400
        assert server.stop() == 0
    good, bad = spans
    assert good.trace_id.hex() == PARENT.split("-")[1]
    assert good.parent_span_id.hex() == PARENT.split("-")[2]
    assert {each.key: each.value.int_value for each in good.attributes}["http.response.status_code"] == 200
    assert bad.trace_id != good.trace_id
    assert bad.status.code == 2, "an error"
    assert [event.name for event in bad.events] == ["exception"]


def test_a_collector_that_is_down_disturbs_nobody(finished_run: Path, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, "--runtime", "onnxruntime-cpu", "--otlp", "http://127.0.0.1:9") as server:
        assert infer(server.url, server.name, bytes(64)) == 200
        assert server.stop() == 0
