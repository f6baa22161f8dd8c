"""Traces of requests in OpenTelemetry's form, sent to a collector: the extra `otel`.

Takes the headers of a request; a `traceparent` in them is continued. Without `--otlp` nothing of
this is imported.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from export.errors import NotHereError

_OWN_LOGS = ("opentelemetry.sdk._shared_internal", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


class Tracer:
    """Spans of one server."""

    def __init__(self, endpoint: str, facts: Mapping[str, str]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.propagate import extract
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise NotHereError(f"--otlp needs {error.name}, which is not installed; pip install 'samegraph[otel]'") from error
        for name in _OWN_LOGS:  # a collector that is down is no fault of a request
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._provider = TracerProvider(resource=Resource.create({"service.name": "samegraph", **facts}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)))
        self._tracer = self._provider.get_tracer("samegraph.server")
        self._extract: Callable[[Mapping[str, str]], Any] = extract

    @contextmanager
    def span(self, name: str, headers: Mapping[bytes, bytes], **facts: str | int) -> Iterator[Any]:
        """Open a span, as the child of the client's if the request says so.

        An error that passes through is recorded in it.
        """
        carried = {key: headers[key.encode()].decode("latin-1") for key in ("traceparent", "tracestate") if key.encode() in headers}
        with self._tracer.start_as_current_span(name, context=self._extract(carried), attributes=facts) as span:
            yield span

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
