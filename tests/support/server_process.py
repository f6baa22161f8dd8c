"""A real `pipeline serve` in a process of its own, for tests that ask it over the network."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class ServerProcess:
    """A server that is ready, and how to ask it."""

    process: "subprocess.Popen[str]"
    url: str
    grpc: str | None
    name: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return json.loads(answer.read())

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def said(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]

    def wait_for(self, message: str, seconds: float = 20) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in self.said():
                if message in line["message"]:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"the server never said {message!r}: {self.log.read_text(encoding='utf-8')}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def command(bundle: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "serve", str(bundle), "--port", "0", "--grpc-port", "0", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(bundle: Path, folder: Path, *options: str) -> Iterator[ServerProcess]:
    """Start a server, wait until it is ready, stop it at the end."""
    log = folder / "server.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command(bundle, *options), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(), cwd=folder)
    try:
        yield _ready(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def _ready(process: "subprocess.Popen[str]", log: Path) -> ServerProcess:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("ready: "):
                address, _, grpc = line.removeprefix("ready: ").partition(", gRPC ")
                url, _, name = address.partition("/v2/models/")
                return ServerProcess(process, url, grpc or None, name, log)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready: {log.read_text(encoding='utf-8')}")


def refusal(bundle: Path, *options: Sequence[str] | str) -> tuple[int, str]:
    """The exit code and the last line of a server that does not start."""
    done = subprocess.run(
        command(bundle, *map(str, options)), capture_output=True, text=True, env=environment(), cwd=bundle.parent, timeout=100, check=False
    )
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
