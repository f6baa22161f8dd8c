"""What a server does with requests, whatever protocol they came by: ready or not, answer, change.

Takes decoded requests; returns outputs, or raises a `ProtocolError`. Holds the one model that is
served, and changes it for another without losing a request.
"""

import asyncio
import enum
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.compare.bits import Array
from deploy.server.batcher import Limits, QueueFullError
from deploy.server.counts import Counts, batch_sizes
from deploy.server.dispatcher import ClosedError, Dispatcher, DispatchOptions, ExpiredError, FailedError
from deploy.server.model import LoadedModel
from deploy.server.protocol import ModelSpec, ProtocolError

log = logging.getLogger("samegraph.server")
SERVER_NAME = "samegraph"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
_RETRY_AFTER = {"Retry-After": "1"}


class Phase(enum.Enum):
    """Where a server is in its life."""

    STARTING = "starting"
    READY = "ready"
    DOUBTED = "doubted"
    """A recheck gave other bits."""
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """How requests are put together and watched."""

    max_queue_delay: float = 0.0
    max_queue_size: int = 128
    timeout: float | None = 30.0
    """Seconds for a request, its waiting included; a request may ask for less."""
    recheck: float = 0.0
    hang: float = 60.0


class Service:
    """The model that is served now. All methods are for the event loop's thread."""

    def __init__(self, model: LoadedModel, options: ServiceOptions, counts: Counts, version: str) -> None:
        self.counts, self.version = counts, version
        self._options = options
        self._dispatcher = self._dispatcher_of(model)
        self.phase = Phase.STARTING

    @property
    def model(self) -> LoadedModel:
        return self._dispatcher.model

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY and not self._dispatcher.hanging()

    @property
    def live(self) -> bool:
        """Whether this process can still do its work; one whose workers all hang should be
        restarted."""
        return self.phase is not Phase.STOPPED and self._dispatcher.hanging() < len(self.model.runners)

    @property
    def unanswered(self) -> int:
        return self._dispatcher.unanswered

    def start(self) -> None:
        """Take requests from here on."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
        self.counts.set("ready", int(self.ready))

    def require_model(self, name: str, version: str) -> ModelSpec:
        """Return the model's spec if it is the one of that name; "" stands for any version."""
        if name != self.spec.name:
            raise ProtocolError(404, f"no model {name[:80]!r} here, expected {self.spec.name}")
        if version not in ("", self.spec.version):
            raise ProtocolError(404, f"{self.spec.name} has no version {version[:80]!r}, expected {self.spec.version}")
        return self.spec

    def require_room(self) -> None:
        """Refuse before the body is read what would be refused after it: in an overload most
        requests end here."""
        if self.is_full:
            raise self.full()

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more requests."""
        return self._dispatcher.requests_waiting >= self._options.max_queue_size

    def full(self) -> ProtocolError:
        return ProtocolError(503, f"the queue is full: {self._options.max_queue_size} requests wait", _RETRY_AFTER)

    async def infer(self, rows: Array, timeout: float | None) -> Array:
        """Return the outputs for the rows of one request."""
        if self.phase not in (Phase.READY, Phase.DOUBTED):
            raise ProtocolError(503, f"the server is {self.phase.value}", _RETRY_AFTER)
        limits = [each for each in (timeout, self._options.timeout) if each is not None]
        while True:
            dispatcher = self._dispatcher
            try:
                return await dispatcher.infer(rows, min(limits, default=None))
            except ClosedError:
                if dispatcher is self._dispatcher:
                    raise ProtocolError(503, "the server is stopping", _RETRY_AFTER) from None
            except QueueFullError:
                raise self.full() from None
            except ExpiredError:
                raise ProtocolError(504, "the request timed out before it was computed") from None
            except FailedError:
                raise ProtocolError(500, "the model could not be run") from None

    async def replace(self, model: LoadedModel) -> None:
        """Serve another model from here on; what the present one has taken in it still answers."""
        before, self._dispatcher = self._dispatcher, self._dispatcher_of(model)
        if self.phase is Phase.DOUBTED:
            self.phase = Phase.READY
        self.counts.add("swaps")
        self.counts.set("ready", int(self.ready))
        await before.drained()
        before.close()
        await asyncio.get_running_loop().run_in_executor(None, before.join, 5.0)
        before.model.close()

    async def drain(self, timeout: float) -> bool:
        """Be no longer ready, answer what was taken in; return whether all was answered in time."""
        self.phase = Phase.DRAINING
        self.counts.set("ready", 0)
        try:
            await asyncio.wait_for(self._dispatcher.drained(), timeout)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Give up what is left."""
        self.phase = Phase.STOPPED
        self._dispatcher.close()
        if self._dispatcher.join(1.0):
            self.model.close()

    def _dispatcher_of(self, model: LoadedModel) -> Dispatcher:
        options = self._options
        limits = Limits(model.max_batch_size, options.max_queue_delay, options.max_queue_size)
        return Dispatcher(model, DispatchOptions(limits, options.recheck, options.hang), self.counts, self._doubt)

    def _doubt(self, request: str) -> None:
        """Be no longer ready: a recheck gave other bits."""
        log.error("a recheck gave other bits", extra={"facts": {"request_sha256": request, "model": self.spec.name, "runtime": self.model.runtime}})
        if self.phase is Phase.READY:
            self.phase = Phase.DOUBTED
            self.counts.set("ready", 0)

    def server_metadata(self) -> dict[str, object]:
        return {"name": SERVER_NAME, "version": self.version, "extensions": list(EXTENSIONS)}

    def model_metadata(self) -> dict[str, object]:
        """Return the protocol's metadata, and what clients may rely on."""
        model = self.model
        return {
            **self.spec.metadata(),
            "parameters": {
                "form": model.form,
                "runtime": model.runtime,
                "verified": model.verified,
                "batching": model.batching,
                "bundle_sha256": model.sha256,
            },
        }

    def config(self) -> dict[str, object]:
        """Return the model's configuration in the fields that Triton's clients read."""
        spec, model = self.spec, self.model
        return {
            "name": spec.name,
            "platform": spec.platform,
            "backend": spec.platform.partition("_")[0],
            "max_batch_size": model.max_batch_size,
            "input": [
                {
                    "name": spec.input.name,
                    "data_type": f"TYPE_{spec.input.datatype}",
                    "format": "FORMAT_NCHW" if len(spec.input.sizes) == 3 else "FORMAT_NONE",
                    "dims": list(spec.input.sizes),
                }
            ],
            "output": [
                {
                    "name": spec.output.name,
                    "data_type": f"TYPE_{spec.output.datatype}",
                    "dims": list(spec.output.sizes),
                    "label_filename": "labels.txt",
                }
            ],
            "dynamic_batching": {"max_queue_delay_microseconds": round(self._options.max_queue_delay * 1e6)},
        }

    def statistics(self) -> dict[str, object]:
        """Return counts and times in the form of Triton's statistics, over all processes."""
        totals = self.counts.totals()
        good = totals["http.ok"] + totals["grpc.ok"]
        bad = sum(totals[f"{protocol}.{outcome}"] for protocol in ("http", "grpc") for outcome in ("invalid", "rejected", "expired", "failed"))

        def duration(count: int, nanoseconds: int) -> dict[str, int]:
            return {"count": count, "ns": nanoseconds}

        nothing = duration(0, 0)
        return {
            "name": self.spec.name,
            "version": self.spec.version,
            "last_inference": totals["last_inference_ms"] // max(1, self.counts.processes),
            "inference_count": totals["rows"],
            "execution_count": totals["batches"],
            "inference_stats": {
                "success": duration(good, totals["request.ns"]),
                "fail": duration(bad, totals["fail.ns"]),
                "queue": duration(totals["queue.count"], totals["queue.ns"]),
                "compute_input": duration(good, totals["decode.ns"]),
                "compute_infer": duration(totals["compute.count"], totals["compute.ns"]),
                "compute_output": duration(good, totals["encode.ns"]),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {"batch_size": size, "compute_input": nothing, "compute_infer": duration(count, took), "compute_output": nothing}
                for size, (count, took) in batch_sizes(totals).items()
            ],
        }

    def index(self) -> list[dict[str, str]]:
        """Return the repository's index: one model."""
        state = "READY" if self.ready else "UNAVAILABLE"
        return [{"name": self.spec.name, "version": self.spec.version, "state": state, "reason": "" if self.ready else self.phase.value}]

    def note(self, protocol: str, outcome: str, started: int) -> None:
        """Count the outcome of a request."""
        self.counts.add(f"{protocol}.{outcome}")
        taken = time.perf_counter_ns() - started
        if outcome == "ok":
            self.counts.time("request", taken)
            self.counts.set("last_inference_ms", int(time.time() * 1000))
        else:
            self.counts.add("fail.ns", taken)


OUTCOME_OF_STATUS: Mapping[int, str] = {503: "rejected", 504: "expired", 500: "failed"}
"""How an error is counted; every other status is the client's mistake."""
