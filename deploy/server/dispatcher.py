"""Batches on their way through the workers: threads that run the sessions of one model.

Takes rows and a deadline on the event loop; gives a future of the outputs. Each request is
answered exactly once. Knows no protocol.
"""

import asyncio
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from deploy.compare.bits import Array, ordered_bits
from deploy.server.batcher import Batch, Batcher, Limits, Part, QueueFullError
from deploy.server.counts import Counts
from deploy.server.model import LoadedModel, request_hash

log = logging.getLogger("samegraph.server")


class ExpiredError(Exception):
    """The deadline of a request passed before its answer was there."""


class FailedError(Exception):
    """The runtime could not compute a request."""


class ClosedError(Exception):
    """The dispatcher takes no more requests."""


@dataclass
class _Waiting:
    """A request on its way."""

    rows: Array
    future: "asyncio.Future[Array]"
    arrived: int
    outputs: Array | None = None
    """What was computed so far, if it takes several batches."""
    handle: object = None


@dataclass
class _Worker:
    """A thread, and what it does."""

    index: int
    inbox: "queue.SimpleQueue[tuple[Batch, Array] | None]" = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    busy_since: float | None = None


@dataclass(frozen=True)
class DispatchOptions:
    """How requests wait, and how they are watched."""

    limits: Limits
    recheck: float = 0.0
    """The share of requests that is computed again, alone, to compare bits."""
    hang: float = 60.0
    """After how many seconds a batch counts as hanging."""


class Dispatcher:
    """The workers of one model. All methods are for the event loop's thread."""

    def __init__(self, model: LoadedModel, options: DispatchOptions, counts: Counts, on_doubt: Callable[[str], None]) -> None:
        self.model = model
        self._options, self._counts, self._on_doubt = options, counts, on_doubt
        self._batcher = Batcher(options.limits)
        self._requests: dict[int, _Waiting] = {}
        self._loop = asyncio.get_running_loop()
        self._draw = random.Random(0)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._workers = [_Worker(index) for index in range(len(model.runners))]
        self._free = list(self._workers)
        for worker in self._workers:
            worker.thread = threading.Thread(target=self._work, args=(worker,), name=f"worker {worker.index}", daemon=True)
            worker.thread.start()

    @property
    def requests_waiting(self) -> int:
        return self._batcher.requests_waiting

    @property
    def unanswered(self) -> int:
        return len(self._requests)

    def hanging(self) -> int:
        """Return how many workers have had one batch for too long."""
        now = time.monotonic()
        return sum(worker.busy_since is not None and now - worker.busy_since > self._options.hang for worker in self._workers)

    async def infer(self, rows: Array, timeout: float | None) -> Array:
        """Return the outputs for rows.

        QueueFullError, ExpiredError, FailedError or ClosedError otherwise. A caller that is
        cancelled takes its rows with it.
        """
        if self._closed:
            raise ClosedError
        now = time.monotonic()
        number = self._batcher.offer(len(rows), now, math.inf if timeout is None else now + timeout)
        future: asyncio.Future[Array] = self._loop.create_future()
        self._requests[number] = _Waiting(rows, future, time.perf_counter_ns())
        self._empty.clear()
        self._pump(now)
        try:
            return await future
        except asyncio.CancelledError:
            if self._batcher.cancel(number):
                self._forget(number)
            raise

    async def drained(self) -> None:
        """Wait until every request that was taken in has its answer."""
        await self._empty.wait()

    def close(self) -> None:
        """Take no more requests, fail those that are left, end the workers after their batch."""
        self._closed = True
        for number in self._batcher.drain():
            self._answer(number, ClosedError())
        if self._timer is not None:
            self._timer.cancel()
        for worker in self._workers:
            worker.inbox.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the workers; return whether all have ended."""
        until = time.monotonic() + timeout
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, until - time.monotonic()))
        return not any(worker.thread is not None and worker.thread.is_alive() for worker in self._workers)

    def _pump(self, now: float) -> None:
        """Answer what has expired, give batches to free workers, set the clock."""
        for number in self._batcher.expire(now):
            self._answer(number, ExpiredError())
        while self._free and (batch := self._batcher.take(now)) is not None:
            worker = self._free.pop()
            worker.busy_since = now
            worker.inbox.put((batch, self._rows_of(batch)))
        self._set_timer(now)
        self._counts.set("requests_waiting", self._batcher.requests_waiting)
        self._counts.set("rows_waiting", self._batcher.rows_waiting)
        self._counts.set("busy_workers", len(self._workers) - len(self._free))

    def _rows_of(self, batch: Batch) -> Array:
        parts = [self._requests[part.request].rows[part.first : part.first + part.rows] for part in batch.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _set_timer(self, now: float) -> None:
        """Wake up for the next deadline, and for the next batch if a worker is free for it.

        A timer that rings too early costs less than one that is set again for every request.
        """
        due = min(self._batcher.next_deadline(), self._batcher.next_batch_at() if self._free else math.inf)
        if due == math.inf or due >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - now), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._pump(time.monotonic())

    def _work(self, worker: _Worker) -> None:
        """Run batches until there are no more; the thread's own loop."""
        while (item := worker.inbox.get()) is not None:
            batch, rows = item
            started = time.perf_counter_ns()
            outputs = self._computed(worker.index, rows)
            taken = time.perf_counter_ns() - started
            try:
                self._loop.call_soon_threadsafe(self._finished, worker, batch, rows, outputs, started, taken)
            except RuntimeError:  # the loop is closed, and nobody waits any more
                return

    def _computed(self, worker: int, rows: Array) -> Array | None:
        """Return the outputs, at the second try if the runtime fails at the first; or None."""
        for attempt in (1, 2):
            try:
                return self.model.run(worker, rows)
            except Exception:
                log.exception("a batch failed", extra={"facts": {"rows": len(rows), "attempt": attempt, "worker": worker}})
                self._counts.add("retries")
        return None

    def _finished(self, worker: _Worker, batch: Batch, rows: Array, outputs: Array | None, started: int, taken: int) -> None:
        if outputs is None:
            for number in self._batcher.fail(batch):
                self._answer(number, FailedError())
        else:
            self._counts.batch(batch.rows, taken)
            self._counts.time("compute", taken)
            self._share_out(batch, outputs, started)
        worker.busy_since = None
        if outputs is not None and self._options.recheck and not self._closed:
            self._recheck(worker, batch, rows, outputs)
        else:
            self._free.append(worker)
        self._pump(time.monotonic())

    def _share_out(self, batch: Batch, outputs: Array, started: int) -> None:
        first = 0
        for part in batch.parts:
            waiting = self._requests.get(part.request)
            if waiting is not None:
                self._keep(waiting, part, outputs[first : first + part.rows])
                if part.first == 0:
                    self._counts.time("queue", max(0, started - waiting.arrived))
            first += part.rows
        for number in self._batcher.finish(batch):
            self._answer(number, None)

    @staticmethod
    def _keep(waiting: _Waiting, part: Part, outputs: Array) -> None:
        if part.rows == len(waiting.rows):
            waiting.outputs = outputs
            return
        if waiting.outputs is None:
            waiting.outputs = np.empty((len(waiting.rows), *outputs.shape[1:]), outputs.dtype)
        waiting.outputs[part.first : part.first + part.rows] = outputs

    def _answer(self, number: int, error: Exception | None) -> None:
        waiting = self._requests.pop(number)
        if not waiting.future.done():
            if error is None and waiting.outputs is not None:
                waiting.future.set_result(waiting.outputs)
            else:
                waiting.future.set_exception(error or FailedError())
        if not self._requests:
            self._empty.set()

    def _forget(self, number: int) -> None:
        self._requests.pop(number, None)
        if not self._requests:
            self._empty.set()

    def _recheck(self, worker: _Worker, batch: Batch, rows: Array, outputs: Array) -> None:
        """Let the worker compute some of the batch's rows again, alone, before its next batch."""
        starts = np.cumsum([0, *(part.rows for part in batch.parts)])
        chosen = [int(start) for start in starts[:-1] if self._draw.random() < self._options.recheck]
        if not chosen:
            self._free.append(worker)
            return
        threading.Thread(target=self._compute_again, args=(worker, rows, outputs, chosen), daemon=True).start()

    def _compute_again(self, worker: _Worker, rows: Array, outputs: Array, chosen: list[int]) -> None:
        different = []
        for row in chosen:
            alone = self._computed(worker.index, rows[row : row + 1])
            if alone is None or not np.array_equal(ordered_bits(alone), ordered_bits(outputs[row : row + 1])):
                different.append(request_hash(rows[row : row + 1]))
        try:
            self._loop.call_soon_threadsafe(self._rechecked, worker, len(chosen), different)
        except RuntimeError:  # the loop is closed
            return

    def _rechecked(self, worker: _Worker, number: int, different: list[str]) -> None:
        self._counts.add("rechecked", number)
        if different:
            self._counts.add("recheck_different", len(different))
            self._on_doubt(different[0])
        self._free.append(worker)
        self._pump(time.monotonic())


__all__ = ["ClosedError", "DispatchOptions", "Dispatcher", "ExpiredError", "FailedError", "QueueFullError"]
