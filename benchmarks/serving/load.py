"""A client that costs little: many connections in one process, requests made beforehand.

    python -m benchmarks.serving.load SPEC.json

Takes a file of requests and expected answers; prints one JSON object. It runs in a process of its
own, so that its CPU time is counted apart from the server's. Talks to loopback only.
"""

import asyncio
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import uvloop


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, by how many, for how long."""

    port: int
    connections: int
    seconds: float
    requests: str
    """A file of requests: each behind its length in 8 bytes, little-endian."""
    answers: str | None = None
    """A file of the same form: how the body of each answer must end. None: not compared."""
    rate: float | None = None
    """Requests a second in all, at times fixed beforehand; None: each connection asks as soon as it
    has its answer."""
    warm_up: float = 0.5


@dataclass
class Tally:
    """What came back."""

    good: int = 0
    wrong: int = 0
    broken: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


def packed(pieces: list[bytes]) -> bytes:
    return b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)


def unpacked(content: bytes) -> list[bytes]:
    pieces, place = [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        pieces.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    return pieces


_TICK = 0.002
"""Seconds between two looks at the clock at a high rate: who looks more often takes the server's
time."""
_HIGH_RATE = 500.0


class _Connection(asyncio.Protocol):
    """One connection that asks again and again."""

    def __init__(self, run: "_Run", first: int) -> None:
        self._run, self._next, self._step = run, first, run.load.connections
        self._buffer = bytearray()
        self._asked = 0.0
        self._current = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's have another base
        if self._run.load.rate is None:
            self.ask()

    def ask(self, due: float | None = None) -> None:
        """Send the next request; its latency counts from when it was due."""
        self._current, self._next = self._next % len(self._run.requests), self._next + self._step
        self._asked = time.perf_counter() if due is None else due
        self.transport.write(self._run.requests[self._current])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        place = self._buffer.find(b"content-length: ", 0, head)
        place = place if place >= 0 else self._buffer.find(b"Content-Length: ", 0, head)
        length = int(self._buffer[place + 16 : self._buffer.find(b"\r\n", place)])
        if len(self._buffer) < head + 4 + length:
            return
        self._note(int(self._buffer[9:12]), bytes(self._buffer[head + 4 : head + 4 + length]))
        del self._buffer[: head + 4 + length]
        if self._run.load.rate is None:
            if time.perf_counter() < self._run.end:
                self.ask()
            else:
                self.transport.close()
        else:
            self._run.idle.append(self)

    def _note(self, status: int, body: bytes) -> None:
        now, tally = time.perf_counter(), self._run.tally
        if self._asked < self._run.begin:
            return
        tally.statuses[status] += 1
        if status != 200:
            return
        if self._run.answers is not None and not body.endswith(self._run.answers[self._current]):
            tally.wrong += 1
            return
        tally.good += 1
        tally.latencies.append(now - self._asked)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.tally.broken += time.perf_counter() < self._run.end
        self._run.left -= 1
        if not self._run.left:
            self._run.done.set()


class _Run:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.requests = unpacked(Path(load.requests).read_bytes())
        self.answers = None if load.answers is None else unpacked(Path(load.answers).read_bytes())
        self.tally = Tally()
        self.begin = time.perf_counter() + load.warm_up
        self.end = self.begin + load.seconds
        self.done = asyncio.Event()
        self.left = load.connections
        self.idle: list[_Connection] = []
        self.late = 0
        """Ticks at which no connection was free for a request that was due."""

    async def run(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        made = []
        for first in range(self.load.connections):
            _, protocol = await loop.create_connection(partial(_Connection, self, first), "127.0.0.1", self.load.port)
            made.append(protocol)
        before = resource.getrusage(resource.RUSAGE_SELF)
        if self.load.rate is None:
            await asyncio.wait_for(self.done.wait(), self.load.warm_up + self.load.seconds + 20)
        else:
            self.idle = made
            await self._at_a_rate(self.load.rate)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return self._result(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    async def _at_a_rate(self, rate: float) -> None:
        """Ask for what is due at each tick; a request's latency counts from when it was due."""
        due = time.perf_counter()
        while due < self.end:
            now = time.perf_counter()
            while due <= now and self.idle:
                self.idle.pop().ask(due)
                due += 1 / rate
            self.late += due <= now
            await asyncio.sleep(max(_TICK if rate > _HIGH_RATE else 0.0, due - now))
        await asyncio.sleep(1.0)

    def _result(self, cpu: float) -> dict[str, object]:
        latencies = sorted(self.tally.latencies)

        def at(share: float) -> float | None:
            return round(1e3 * latencies[min(len(latencies) - 1, int(share * len(latencies)))], 4) if latencies else None

        return {
            "good": self.tally.good,
            "wrong": self.tally.wrong,
            "broken": self.tally.broken,
            "statuses": dict(self.tally.statuses),
            "seconds": self.load.seconds,
            "per_second": round(self.tally.good / self.load.seconds, 2),
            "median_ms": at(0.5),
            "p99_ms": at(0.99),
            "worst_ms": at(1.0),
            "client_cpu_seconds": round(cpu, 4),
            "late": self.late,
        }


def main() -> int:
    load = Load(**json.loads(Path(sys.argv[1]).read_bytes()))
    if load.port < 1:
        raise SystemExit("a port is needed")

    async def run() -> dict[str, object]:
        return await _Run(load).run()

    print(json.dumps(uvloop.run(run())))
    return 0


def as_json(load: Load) -> str:
    return json.dumps(asdict(load))


if __name__ == "__main__":
    sys.exit(main())
