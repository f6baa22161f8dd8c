"""One process that serves: opens the bundle, listens, changes to new bundles, stops on a signal.

Takes `ServeOptions` and sockets that are bound. Its parent, if there are several processes, is in
`processes.py`.
"""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.server.application import Application, ApplicationOptions
from deploy.server.counts import Counts
from deploy.server.http import HttpOptions, HttpServer
from deploy.server.image_page import pages_of
from deploy.server.model import LoadedModel, ModelOptions, open_model
from deploy.server.service import Phase, Service, ServiceOptions
from deploy.server.tracing import Tracer
from export.bundle import MANIFEST, open_bundle
from export.errors import SamegraphError, UsageError
from export.files import sha256_of

log = logging.getLogger("samegraph.server")
_LOOPBACK = ("127.", "::1", "localhost")
LINGER = 0.5
"""How many seconds an idle connection is kept when the server stops, for a request that is under
way."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Everything about a server."""

    bundle: Path
    model: ModelOptions = field(default_factory=ModelOptions)
    service: ServiceOptions = field(default_factory=ServiceOptions)
    http: HttpOptions = field(default_factory=HttpOptions)
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    """None: no gRPC."""
    token: str | None = None
    certificate: tuple[Path, Path] | None = None
    """Certificate and key, for TLS."""
    metrics_compat: bool = False
    otlp: str | None = None
    """Where traces go: the address of a collector that speaks OTLP over HTTP."""
    watch: float | None = None
    """Look for a new bundle at this interval of seconds."""
    drain_delay: float = 0.0
    """Seconds between the loss of readiness and the end of listening."""
    drain_timeout: float = 30.0
    processes: int = 1

    @property
    def is_open(self) -> bool:
        """Whether machines other than this one may connect."""
        return not self.host.startswith(_LOOPBACK)


class Host:
    """A server in this process."""

    def __init__(self, options: ServeOptions, counts: Counts) -> None:
        self._options, self._counts = options, counts
        self._stopping = asyncio.Event()
        self._refused: str | None = None
        """The hash of the manifest of a new bundle that was not taken."""

    async def run(self, sockets: Sequence[socket.socket], grpc_port: int | None, on_ready: Callable[[Service, int | None], None]) -> None:
        """Serve until a signal says stop."""
        options, loop = self._options, asyncio.get_running_loop()
        model = await loop.run_in_executor(None, opened, options)
        service = Service(model, options.service, self._counts, version())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        tls = None if options.certificate is None else _tls(options.certificate)
        tracer = None if options.otlp is None else Tracer(options.otlp, {"service.version": version(), "model": service.spec.name})
        pages = pages_of(service)
        application = Application(service, ApplicationOptions(token=options.token, metrics_compat=options.metrics_compat, tracer=tracer, pages=pages))
        http = HttpServer(application, options.http, self._counts, tls)
        grpc_server, bound = await self._grpc(service, grpc_port)
        await http.start(sockets)
        service.start()
        on_ready(service, bound)
        log.info("ready", extra={"facts": {"model": service.spec.name, "why": model.why, "verified": model.verified, "bundle_sha256": model.sha256}})
        watching = asyncio.create_task(self._watch(service)) if options.watch is not None else None
        health = asyncio.create_task(self._watch_health(service))
        await self._stopping.wait()
        for task in (watching, health):
            if task is not None:
                task.cancel()
        await self._end(service, http, grpc_server)
        if tracer is not None:
            await loop.run_in_executor(None, tracer.close)

    def _stop(self) -> None:
        """Stop after what was taken in has its answer; at the second signal, at once."""
        if self._stopping.is_set():
            log.warning("stopped at once")
            raise SystemExit(1)
        self._stopping.set()

    async def _end(self, service: Service, http: HttpServer, grpc_server: Any) -> None:
        options = self._options
        service.phase = Phase.DRAINING
        self._counts.set("ready", 0)
        log.info("draining", extra={"facts": {"unanswered": service.unanswered}})
        await asyncio.sleep(options.drain_delay)
        ending = [http.stop(LINGER, options.drain_timeout)]
        if grpc_server is not None:
            ending.append(grpc_server.stop(options.drain_timeout))
        await asyncio.gather(*ending)
        if not await service.drain(1.0):
            log.error("not all requests were answered", extra={"facts": {"unanswered": service.unanswered}})
        service.stop()
        log.info("stopped")

    async def _grpc(self, service: Service, port: int | None) -> tuple[Any, int | None]:
        if port is None:
            return None, None
        import grpc

        from deploy.server.grpc import GrpcServer

        credentials = None
        if self._options.certificate is not None:
            certificate, key = self._options.certificate
            credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        server = GrpcServer(service, self._options.token)
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return server, await server.start(f"{host}:{port}", credentials)

    async def _watch_health(self, service: Service) -> None:
        """Keep the shared readiness current; hanging workers change it without an event."""
        while True:
            await asyncio.sleep(1.0)
            self._counts.set("ready", int(service.ready))

    async def _watch(self, service: Service) -> None:
        """Change to a new bundle in the folder, if it verifies."""
        assert self._options.watch is not None
        while True:
            await asyncio.sleep(self._options.watch)
            await self._look(service)

    async def _look(self, service: Service) -> None:
        digest = _manifest_hash(self._options.bundle)
        if digest is None or digest in (service.model.sha256, self._refused):
            return
        try:
            model = await asyncio.get_running_loop().run_in_executor(None, self._opened_like, service)
        except SamegraphError as error:
            self._refuse(digest, str(error))
        except Exception:
            log.exception("a new bundle could not be opened")
            self._refuse(digest, "it could not be opened")
        else:
            await service.replace(model)
            log.info("changed to a new bundle", extra={"facts": {"bundle_sha256": model.sha256, "why": model.why}})

    def _opened_like(self, service: Service) -> LoadedModel:
        model = opened(self._options)
        now, then = model.spec, service.spec
        if (now.name, now.input, now.output) != (then.name, then.input, then.output):
            model.close()
            raise UsageError(
                f"the new bundle is {now.name} with {now.input} and {now.output}, clients expect {then.name}, {then.input}, {then.output}"
            )
        return model

    def _refuse(self, digest: str, reason: str) -> None:
        self._refused = digest
        self._counts.add("refused_bundles")
        log.error("a new bundle was not taken, the present one goes on", extra={"facts": {"reason": reason, "bundle_sha256": digest}})


def opened(options: ServeOptions) -> LoadedModel:
    return open_model(open_bundle(options.bundle), options.model)


def _manifest_hash(folder: Path) -> str | None:
    """Return the hash of the manifest; None while a bundle is being exchanged."""
    try:
        return sha256_of((folder / MANIFEST).read_bytes())
    except OSError:
        return None


def _tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(*certificate)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{certificate[0]} and {certificate[1]} are not a certificate and its key: {error}") from error
    return context


def version() -> str:
    try:
        return metadata.version("samegraph")
    except metadata.PackageNotFoundError:
        return "0"
