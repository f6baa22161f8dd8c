"""Our HTTP server: uvicorn's protocol with deadlines and limits that it lacks.

Takes an ASGI application and sockets. A client that is slow, floods, or leaves costs nobody else
anything; a server that stops resets no connection.
"""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from deploy.server.application import GONE, Application
from deploy.server.counts import Counts

_MOST_PIPELINED = 16
_LARGEST_HEADERS = 32 * 2**10
_DIGITS = 6
"""The length of a body that is read to its end after the request was refused, in digits."""
_LINGER = 2.0
"""Seconds in which a client may end its request after it was refused."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Limits of connections."""

    most_connections: int = 1024
    header_timeout: float = 10.0
    """Seconds from the first byte of a request to the end of its headers."""
    keep_alive: int = 75
    """Seconds that an idle connection stays open."""


class _Transport:
    """A transport that closes without resetting.

    Who closes while the client still sends resets the connection, and the client may never see the
    answer. So the answer is ended, and what still comes is thrown away for a while.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.receiving = True
        """Whether the client has not ended its request yet."""
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.lingers:
            return
        if self.receiving and not self._transport.is_closing() and self._transport.can_write_eof():
            self.lingers = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(_LINGER, self._transport.close)
        else:
            self._transport.close()


class Connection(HttpToolsProtocol):
    """One connection. uvicorn parses and answers; this adds what it has no limits for."""

    def __init__(self, owner: "HttpServer") -> None:
        super().__init__(owner.config, owner.state, {})
        # A client that goes on sending after it said `Connection: close` is not listened to.
        self.parser = httptools.HttpRequestParser(self)
        self._owner = owner
        self._gone: list[Callable[[], object]] = []
        self._header_bytes = 0
        self._in_headers = False
        self._refused = False
        """Whether the request that arrives has its answer already."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = _Transport(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._lingering))
        if len(self.connections) > self._owner.options.most_connections:
            self._refuse(503, "too many connections", (b"retry-after: 1\r\n",))
            return
        self._owner.counts.set("connections", len(self.connections))
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner.counts.set("connections", len(self.connections))
        self._cancel_deadline()
        self._unset_keepalive_if_required()
        listeners, self._gone[:] = list(self._gone), []
        for listener in listeners:
            listener()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_headers or self.cycle is None or self.cycle.response_complete:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > _LARGEST_HEADERS and not self.transport.is_closing():
            self._refuse(431, f"the headers have more than {_LARGEST_HEADERS} bytes")

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._lingering.receiving = False
        if self._refused:
            self._refused = False
        else:
            super().on_message_complete()

    def _may_be_refused_at_once(self) -> bool:
        """Whether this is a request for the model while the queue is full.

        In an overload most requests end here, before anything is made for them. What is large, or
        follows a request that has no answer yet, takes the ordinary way.
        """
        if not self._owner.is_full() or not self.url.endswith(b"/infer") or self.pipeline:
            return False
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        idle = self.cycle is None or self.cycle.response_complete
        return idle and self.parser.should_keep_alive() and 0 < len(length) <= _DIGITS

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._lingering.receiving = True
        self._in_headers = True
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._in_headers, self._header_bytes = False, 0
        self._cancel_deadline()
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._refuse(429, f"more than {_MOST_PIPELINED} requests were sent ahead")
            return
        if self._may_be_refused_at_once():
            self._refused = True
            self.transport.write(self._owner.refusal())
            return
        self.scope["extensions"] = {GONE: self._gone}  # type: ignore[dict-item]  # ours: a list of what to call
        super().on_headers_complete()
        if self._owner.stopping:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and not self.pipeline and self.timeout_keep_alive_task is not None and self._owner.stopping:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is not valid HTTP")

    def _should_upgrade(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        return

    def _expect_headers(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self._owner.options.header_timeout, self._too_slow)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._refuse(408, "the headers did not arrive in time")

    def _refuse(self, status: int, message: str, headers: Iterable[bytes] = ()) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": message}).encode()
            lines = (b"content-type: application/json\r\n", b"content-length: %d\r\n" % len(body), *headers, b"connection: close\r\n\r\n")
            self.transport.write(b"".join((STATUS_LINE[status], *lines, body)))
        self.transport.close()


class HttpServer:
    """The listening sockets of a process and the connections that came by them."""

    def __init__(self, application: Application, options: HttpOptions, counts: Counts, tls: ssl.SSLContext | None = None) -> None:
        self.options, self.counts = options, counts
        self._service = application.service
        error = self._service.full()
        body = json.dumps({"error": error.message}).encode()
        lines = {**error.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        self._refusal = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n" + body
        self.stopping = False
        self.config = Config(
            application,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=options.keep_alive,
        )
        self.config.load()
        self.state = ServerState()
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []
        self._clock: asyncio.TimerHandle | None = None

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._tick()
        for each in sockets:
            self._listening.append(each.dup())
            self._servers.append(await loop.create_server(lambda: Connection(self), sock=each, ssl=self._tls, backlog=2048))

    async def stop(self, linger: float, timeout: float) -> bool:
        """Answer what comes until no connection is left; return whether that was in time.

        The sockets no longer listen. A request that was under way when an idle connection would
        have been closed is still answered: such connections stay for `linger` seconds.
        """
        self.stopping = True
        for server in self._servers:
            server.close()
        await self._accept_the_last()
        for connection in self._connections():
            if connection.cycle is not None and not connection.cycle.response_complete:
                connection.cycle.keep_alive = False
        now = time.monotonic()
        while self.state.connections and time.monotonic() < now + timeout:
            if time.monotonic() >= now + linger:
                for connection in self._connections():
                    connection.shutdown()
            await asyncio.sleep(0.02)
        left = bool(self.state.connections)
        for connection in self._connections():
            connection.transport.abort()
        if self._clock is not None:
            self._clock.cancel()
        return not left

    async def _accept_the_last(self) -> None:
        """Take the connections that the kernel has made already: closing would reset them."""
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            accepted = []
            with listening, suppress(OSError):  # it says so when no more are there
                while True:
                    accepted.append(listening.accept()[0])
            for each in accepted:
                each.setblocking(False)
                with suppress(OSError):
                    await loop.connect_accepted_socket(lambda: Connection(self), each, ssl=self._tls)

    def is_full(self) -> bool:
        return self._service.is_full

    def refusal(self) -> bytes:
        """Return a whole answer that says that the queue is full."""
        self._service.note("http", "rejected", time.perf_counter_ns())
        date = b"".join(b"%s: %s\r\n" % header for header in self.state.default_headers)
        return b"HTTP/1.1 503 Service Unavailable\r\n" + date + self._refusal

    def _connections(self) -> list[Connection]:
        return [each for each in self.state.connections if isinstance(each, Connection)]

    def _tick(self) -> None:
        """Set the date for answers, once a second."""
        self.state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)
