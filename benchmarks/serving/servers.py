"""Servers in processes of their own, for the measurements: started, asked, counted, stopped.

The CPU time of a process, with its children, is read from the kernel.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load import Load, as_json, packed
from deploy.compare.bits import Array

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: "subprocess.Popen[str]"
    url: str
    grpc: str | None
    name: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def cpu(self) -> float:
        """Return the CPU seconds of the process and its children so far."""
        return sum(_cpu(each) for each in _family(self.process.pid))

    def memory(self) -> int:
        """Return the resident bytes of the process and its children."""
        return sum(_resident(each) for each in _family(self.process.pid))

    def files(self) -> int:
        """Return how many files and sockets they hold open."""
        return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in _family(self.process.pid))


def _family(process: int) -> list[int]:
    found = [process]
    for each in found:
        children = Path(f"/proc/{each}/task/{each}/children")
        if children.exists():
            found += [int(child) for child in children.read_text(encoding="ascii").split()]
    return found


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def serving(bundle: Path, *options: str, grpc: bool = False) -> Iterator[Running]:
    """Run `pipeline serve` on any free port."""
    command = [sys.executable, "-m", "pipeline", "serve", str(bundle), "--port", "0", "--log-level", "warning", *options]
    command += ["--grpc-port", "0"] if grpc else ["--no-grpc"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield _ready(process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.stderr is not None
        process.stderr.close()


def _ready(process: "subprocess.Popen[str]") -> Running:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("ready: "):
            address, _, grpc = line.strip().removeprefix("ready: ").partition(", gRPC ")
            url, _, name = address.partition("/v2/models/")
            return Running(process, url, grpc or None, name)
    raise RuntimeError(f"the server did not start: {''.join(said)}")


def raw_request(name: str, rows: Array) -> bytes:
    """Return a whole HTTP request with raw binary data."""
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: 0\r\nContent-Length: {rows.nbytes}\r\n\r\n"
    )
    return head.encode() + np.ascontiguousarray(rows).tobytes()


def asked(port: int, requests: Sequence[bytes], answers: Sequence[bytes] | None, **how: Any) -> dict[str, Any]:
    """Run the client against a port in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "requests").write_bytes(packed(list(requests)))
        if answers is not None:
            (place / "answers").write_bytes(packed(list(answers)))
        load = Load(port=port, requests=str(place / "requests"), answers=None if answers is None else str(place / "answers"), **how)
        (place / "load.json").write_text(as_json(load), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.serving.load", str(place / "load.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=how["seconds"] + 120)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def measured(running: Running, requests: Sequence[bytes], answers: Sequence[bytes] | None, **how: Any) -> dict[str, Any]:
    """Ask a server, and add what that cost it."""
    before, started = running.cpu(), time.monotonic()
    found = asked(running.port, requests, answers, **how)
    taken, spent = time.monotonic() - started, running.cpu() - before
    total = sum(found["statuses"].values())
    share = found["seconds"] / max(found["seconds"], taken - 0.7)  # the warm-up is in the CPU time too
    return {**found, "server_cpu_us": round(1e6 * spent * share / max(1, total), 2), "server_memory": running.memory()}
