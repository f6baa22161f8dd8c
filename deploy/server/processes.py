"""A server from start to end: sockets, one process or several, and who restarts whom.

Takes `ServeOptions`. Several processes share one listening socket, so that none loses what another
has not accepted yet.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import FrameType

import uvloop

from deploy.server.counts import Counts
from deploy.server.one_process import Host, ServeOptions
from deploy.server.service import Service
from export import errors
from export.errors import SamegraphError, UsageError

log = logging.getLogger("samegraph.server")
_PR_SET_PDEATHSIG = 1  # Linux's constant for prctl
_QUICK, _MOST_QUICK = 10.0, 5
"""A process that dies within so many seconds of its start so many times is not started again."""


@dataclass(frozen=True)
class Ready:
    """What a server says when it is ready."""

    name: str
    why: str
    verified: bool
    url: str
    grpc: str | None
    facts: dict[str, object]


def serve(options: ServeOptions, on_ready: Callable[[Ready], None]) -> None:
    """Serve until a signal says stop. Refusals are raised before anything listens."""
    if options.processes < 1:
        raise UsageError(f"--processes {options.processes}, expected at least 1")
    listening = _bound(options.host, options.port)
    counts = Counts(options.processes)
    try:
        if options.processes == 1:
            _run_here(options, listening, counts, options.grpc_port, on_ready)
        else:
            _Supervisor(options, listening, counts, on_ready).run()
    finally:
        listening.close()


def _run_here(options: ServeOptions, listening: socket.socket, counts: Counts, grpc_port: int | None, on_ready: Callable[[Ready], None]) -> None:
    def tell(service: Service, bound: int | None) -> None:
        on_ready(_ready(options, service, listening, bound))

    async def main() -> None:
        await Host(options, counts).run([listening], grpc_port, tell)

    uvloop.run(main())


def _ready(options: ServeOptions, service: Service, listening: socket.socket, grpc_port: int | None) -> Ready:
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.certificate is None else "https"
    facts: dict[str, object] = {"server": service.server_metadata(), "model": service.model_metadata(), "sizes": list(service.model.sizes)}
    url = f"{scheme}://{host}:{listening.getsockname()[1]}"
    return Ready(service.spec.name, service.model.why, service.model.verified, url, None if grpc_port is None else f"{host}:{grpc_port}", facts)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port") from error
    listening.setblocking(False)
    return listening


class _Supervisor:
    """The parent of several processes."""

    def __init__(self, options: ServeOptions, listening: socket.socket, counts: Counts, on_ready: Callable[[Ready], None]) -> None:
        self._options, self._listening, self._counts, self._on_ready = options, listening, counts, on_ready
        self._context = multiprocessing.get_context("fork")  # the memory of the counts is inherited
        self._children: dict[int, tuple[ForkProcess, Connection, float]] = {}
        self._quick_deaths = 0
        self._stopping = 0
        self._reserved: socket.socket | None = None

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        port = self._reserve_grpc()
        self._listening.listen(2048)
        try:
            for index in range(self._options.processes):
                self._start(index, port)
            self._await_ready()
            self._watch(port)
        finally:
            self._end()

    def _reserve_grpc(self) -> int | None:
        """Hold the port that all processes bind for gRPC."""
        if self._options.grpc_port is None:
            return None
        self._reserved = socket.socket(socket.AF_INET6 if ":" in self._options.host else socket.AF_INET)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._reserved.bind((self._options.host, self._options.grpc_port))
        except OSError as error:
            raise UsageError(f"gRPC cannot listen on port {self._options.grpc_port}: {error.strerror}; choose another --grpc-port") from error
        port: int = self._reserved.getsockname()[1]
        return port

    def _start(self, index: int, grpc_port: int | None) -> None:
        ours, theirs = self._context.Pipe()
        child = self._context.Process(target=self._child, args=(index, grpc_port, theirs), name=f"serve {index}")
        child.start()
        theirs.close()
        self._children[index] = (child, ours, time.monotonic())

    def _child(self, index: int, grpc_port: int | None, parent: Connection) -> None:
        """Run one process; what it has to say goes through the pipe."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent passes it on
        options = self._options
        model = options.model
        threads = model.threads or max(1, (os.cpu_count() or 1) // (options.processes * model.workers))
        options = replace(options, model=replace(model, threads=threads))
        try:
            _run_here(options, self._listening, self._counts.of_process(index), grpc_port, parent.send)
        except SamegraphError as error:
            parent.send((type(error).__name__, str(error)))
            os._exit(error.exit_code)
        os._exit(0)

    def _await_ready(self) -> None:
        """Wait until every process is ready; the first refusal ends all."""
        told: Ready | None = None
        for index, (child, pipe, _) in self._children.items():
            while not pipe.poll(0.1):
                if self._stopping:
                    return
                if not child.is_alive() and not pipe.poll():
                    raise RuntimeError(f"process {index} ended with {child.exitcode} before it was ready")
            said = pipe.recv()
            if not isinstance(said, Ready):
                raise getattr(errors, said[0], UsageError)(said[1])
            told = told or said
        if told is not None:
            self._on_ready(told)

    def _watch(self, grpc_port: int | None) -> None:
        """Start again what dies, until a signal says stop."""
        while not self._stopping:
            for index, (child, pipe, since) in list(self._children.items()):
                if child.is_alive():
                    continue
                pipe.close()
                self._counts.of_process(index).clear_gauges()
                log.error("a process died and is started again", extra={"facts": {"process": index, "exit_code": child.exitcode}})
                self._quick_deaths = self._quick_deaths + 1 if time.monotonic() - since < _QUICK else 0
                if self._quick_deaths >= _MOST_QUICK:
                    raise RuntimeError(f"process {index} died {self._quick_deaths} times in a row right after its start")
                self._start(index, grpc_port)
            time.sleep(0.1)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._stopping += 1
        self._listening.close()  # the last process that closes it takes the last connections
        for child, _, _ in self._children.values():
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, signal.SIGTERM)

    def _end(self) -> None:
        for child, _, _ in self._children.values():
            if child.is_alive():
                if not self._stopping:
                    child.terminate()
                child.join(self._options.drain_delay + self._options.drain_timeout + 5)
            if child.is_alive():
                child.kill()
        if self._reserved is not None:
            self._reserved.close()
