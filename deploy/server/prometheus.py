"""A server's counts in the text format of Prometheus: own names in base units, Triton's on request.

Takes a `Service`; adds up the rows of all its processes.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as METRICS_TYPE
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.server.counts import OUTCOMES, PROTOCOLS, bucket_counts
from deploy.server.service import Service

__all__ = ["METRICS_TYPE", "metrics_text"]
_COUNTERS = {
    "rows": "Rows that were computed.",
    "batches": "Batches that were computed.",
    "rechecked": "Requests that were computed again, alone.",
    "recheck_different": "Rechecks that gave other bits.",
    "retries": "Batches that a runtime failed to compute at a try.",
    "swaps": "Changes to a new bundle.",
    "refused_bundles": "New bundles that were not taken because they did not verify.",
}
_GAUGES = {
    "requests_waiting": "Requests in the queue.",
    "rows_waiting": "Rows in the queue.",
    "busy_workers": "Workers that compute now.",
    "connections": "Open connections.",
}
_HISTOGRAMS = {
    "request": "Time of an answered request in the server.",
    "queue": "Time from a request's arrival to its batch.",
    "compute": "Time of a batch in the runtime.",
}


def metrics_text(service: Service, *, triton: bool = False) -> bytes:
    """Return all metrics."""
    registry = CollectorRegistry()
    registry.register(_Metrics(service, triton=triton))
    return generate_latest(registry)


class _Metrics(Collector):
    def __init__(self, service: Service, *, triton: bool) -> None:
        self._service, self._triton = service, triton

    def collect(self) -> Iterator[Metric]:
        service, totals = self._service, self._service.counts.totals()
        model = service.model
        info = InfoMetricFamily("samegraph_model", "What is served.")
        info.add_metric(
            [],
            {
                "model": service.spec.name,
                "form": model.form,
                "runtime": model.runtime,
                "batching": model.batching,
                "verified": str(model.verified).lower(),
                "bundle_sha256": model.sha256,
                "version": service.version,
            },
        )
        yield info
        yield GaugeMetricFamily("samegraph_ready", "1 if every process is ready.", int(service.counts.least("ready") and service.ready))
        yield GaugeMetricFamily("samegraph_verified", "1 if the sessions gave the validated outputs.", int(model.verified))
        requests = CounterMetricFamily("samegraph_requests", "Requests by protocol and outcome.", labels=("protocol", "outcome"))
        for protocol in PROTOCOLS:
            for outcome in OUTCOMES:
                requests.add_metric((protocol, outcome), totals[f"{protocol}.{outcome}"])
        yield requests
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"samegraph_{name}", text, totals[name])
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"samegraph_{name}", text, totals[name])
        for name, text in _HISTOGRAMS.items():
            yield HistogramMetricFamily(
                f"samegraph_{name}_seconds", text, buckets=list(bucket_counts(totals, name)), sum_value=totals[f"{name}.ns"] / 1e9
            )
        if self._triton:
            yield from self._of_triton()

    def _of_triton(self) -> Iterator[Metric]:
        """Yield the counters that dashboards for Triton read, under its names."""
        spec, statistics = self._service.spec, self._service.statistics()
        labels, values = ("model", "version"), (spec.name, spec.version)
        stats: dict[str, dict[str, int]] = statistics["inference_stats"]  # type: ignore[assignment]  # its own form
        rows: dict[str, Any] = {
            "nv_inference_request_success": stats["success"]["count"],
            "nv_inference_request_failure": stats["fail"]["count"],
            "nv_inference_count": statistics["inference_count"],
            "nv_inference_exec_count": statistics["execution_count"],
            "nv_inference_request_duration_us": stats["success"]["ns"] // 1000,
            "nv_inference_queue_duration_us": stats["queue"]["ns"] // 1000,
            "nv_inference_compute_input_duration_us": stats["compute_input"]["ns"] // 1000,
            "nv_inference_compute_infer_duration_us": stats["compute_infer"]["ns"] // 1000,
            "nv_inference_compute_output_duration_us": stats["compute_output"]["ns"] // 1000,
        }
        for name, value in rows.items():
            metric = Metric(name, f"Triton's name for what samegraph counts: {name}", "counter")
            metric.add_sample(name, dict(zip(labels, values, strict=True)), value)
            yield metric
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Triton's name for requests in the queue.", labels=labels)
        pending.add_metric(values, self._service.counts.totals()["requests_waiting"])
        yield pending
