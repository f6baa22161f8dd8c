"""Puts requests together into batches: a state machine without threads, clocks or arrays.

Takes sizes, deadlines and the time; says which rows of which requests run next. Knows no model.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field


class QueueFullError(Exception):
    """The queue has no room for a request."""


@dataclass(frozen=True)
class Limits:
    """How requests may be put together."""

    max_batch_size: int
    """The most rows of a batch. A larger request is split."""
    max_queue_delay: float = 0.0
    """How many seconds a request may wait for others to share its batch."""
    max_queue_size: int = 128
    """The most requests that may wait. Those that are being computed do not count."""

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.max_queue_size < 1 or self.max_queue_delay < 0:
            raise ValueError(f"expected positive limits, got {self}")


@dataclass(frozen=True)
class Part:
    """Rows of one request."""

    request: int
    first: int
    rows: int


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together, in this order."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclass
class _Entry:
    """A request that has no answer yet."""

    rows: int
    arrived: float
    deadline: float
    taken: int = 0
    """How many of its rows were given to workers."""
    done: int = 0


@dataclass
class Batcher:
    """Requests between their arrival and their answer.

    Each request gets exactly one answer: done, failed, expired or cancelled. Whatever a worker
    reports of a request that has its answer is ignored.
    """

    limits: Limits
    _entries: dict[int, _Entry] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    """Requests with rows that no worker has, in order of arrival. May hold some that have their
    answer already."""
    _deadlines: list[tuple[float, int]] = field(default_factory=list)
    _rows_waiting: int = 0
    _requests_waiting: int = 0
    _next: int = 0

    @property
    def rows_waiting(self) -> int:
        return self._rows_waiting

    @property
    def requests_waiting(self) -> int:
        """How many requests wait of which no row was given to a worker."""
        return self._requests_waiting

    @property
    def unanswered(self) -> int:
        return len(self._entries)

    def offer(self, rows: int, now: float, deadline: float = math.inf) -> int:
        """Take in a request; return its number."""
        if rows < 1:
            raise ValueError(f"expected at least one row, got {rows}")
        if self._requests_waiting >= self.limits.max_queue_size:
            raise QueueFullError
        self._next += 1
        self._entries[self._next] = _Entry(rows, now, deadline)
        self._waiting.append(self._next)
        self._rows_waiting += rows
        self._requests_waiting += 1
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, self._next))
        return self._next

    def take(self, now: float) -> Batch | None:
        """Return the next batch, for a worker that is free; None if it is better to wait."""
        if not self._rows_waiting or (self._rows_waiting < self.limits.max_batch_size and now < self._oldest() + self.limits.max_queue_delay):
            return None
        parts, room = [], self.limits.max_batch_size
        while room and self._rows_waiting:
            number = self._first_waiting()
            entry = self._entries[number]
            part = Part(number, entry.taken, min(room, entry.rows - entry.taken))
            if entry.taken == 0:
                self._requests_waiting -= 1
            entry.taken += part.rows
            room -= part.rows
            self._rows_waiting -= part.rows
            if entry.taken == entry.rows:
                self._waiting.popleft()
            parts.append(part)
        return Batch(tuple(parts))

    def finish(self, batch: Batch) -> list[int]:
        """Note that a batch was computed; return the requests that are complete with it."""
        complete = []
        for part in batch.parts:
            entry = self._entries.get(part.request)
            if entry is None:
                continue
            entry.done += part.rows
            if entry.done == entry.rows:
                complete.append(part.request)
                self._remove(part.request)
        return complete

    def fail(self, batch: Batch) -> list[int]:
        """Note that a batch could not be computed; return the requests that fail with it."""
        failed = list(dict.fromkeys(part.request for part in batch.parts if part.request in self._entries))
        for number in failed:
            self._remove(number)
        return failed

    def expire(self, now: float) -> list[int]:
        """Return the requests whose deadline has passed; what they wait for is not computed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            if number in self._entries:
                expired.append(number)
                self._remove(number)
        return expired

    def cancel(self, request: int) -> bool:
        """Forget a request whose client has left; return whether it had no answer yet."""
        if request not in self._entries:
            return False
        self._remove(request)
        return True

    def drain(self) -> list[int]:
        """Give up all that have no answer yet, and return them."""
        left = list(self._entries)
        for number in left:
            self._remove(number)
        return left

    def next_batch_at(self) -> float:
        """Return when a batch is due if nothing else arrives; infinity if nothing waits."""
        if not self._rows_waiting:
            return math.inf
        return -math.inf if self._rows_waiting >= self.limits.max_batch_size else self._oldest() + self.limits.max_queue_delay

    def next_deadline(self) -> float:
        """Return when the next request expires; infinity if none has a deadline."""
        while self._deadlines and self._deadlines[0][1] not in self._entries:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _remove(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._rows_waiting -= entry.rows - entry.taken
        if entry.taken == 0:
            self._requests_waiting -= 1
        if len(self._waiting) > 2 * len(self._entries) + 64:  # workers that hang must not let it grow
            self._waiting = deque(each for each in self._waiting if each in self._entries)

    def _first_waiting(self) -> int:
        while self._waiting[0] not in self._entries:
            self._waiting.popleft()
        return self._waiting[0]

    def _oldest(self) -> float:
        return self._entries[self._first_waiting()].arrived
