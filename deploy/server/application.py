"""The HTTP endpoints of the Open Inference Protocol, as an ASGI application.

Takes a `Service`. Routes by hand: a framework's routing and request objects cost more than all the
rest of the server's work on a request.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from deploy.server.openapi import openapi
from deploy.server.prometheus import METRICS_TYPE, metrics_text
from deploy.server.protocol import BINARY_TYPE, HEADER_LENGTH, JSON_TYPE, ModelSpec, ProtocolError, decode, encode
from deploy.server.service import OUTCOME_OF_STATUS, Service
from deploy.server.tracing import Tracer

log = logging.getLogger("samegraph.server")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_HEADER_LENGTH, _REQUEST_ID, _BITS = HEADER_LENGTH.lower().encode(), b"x-request-id", b"samegraph-bits"
GONE = "samegraph.gone"
"""The extension of the ASGI scope with which our HTTP server tells that a client has left: a list
of what is called then."""
_PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_SMALL_BODY = 64 * 2**10
"""The largest body where no tensors are expected."""


class DisconnectError(Exception):
    """The client has left."""


@dataclass(frozen=True)
class Response:
    """An answer."""

    body: bytes
    content_type: str = JSON_TYPE
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_response(content: object, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    return Response(json.dumps(content).encode(), JSON_TYPE, status, tuple(headers))


@dataclass(frozen=True)
class Request:
    """What a handler of an extra page gets."""

    path: str
    query: str
    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(frozen=True)
class Page:
    """A path of its own beside the protocol's."""

    method: str
    handle: Callable[[Request], Awaitable[Response]]
    most_bytes: int = 0
    open_to_all: bool = False
    """Whether no token is needed."""


@dataclass(frozen=True, kw_only=True)
class ApplicationOptions:
    """Who may ask, and what else there is to see."""

    token: str | None = None
    """What clients have to send as a bearer token; health and readiness need none."""
    metrics_compat: bool = False
    """Whether metrics have Triton's names too."""
    receive_timeout: float = 30.0
    """Seconds in which the body of a request must have arrived."""
    pages: Mapping[str, Page] = field(default_factory=dict)
    tracer: Tracer | None = None


class Application:
    """The ASGI application of one process."""

    def __init__(self, service: Service, options: ApplicationOptions | None = None) -> None:
        self.service = service
        self._options = options or ApplicationOptions()
        self._token = None if self._options.token is None else f"Bearer {self._options.token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = dict(scope["headers"])
        identity = _identity(headers)
        try:
            response = await self._answer(scope, headers, receive)
        except ProtocolError as error:
            response = json_response(
                {"error": error.message}, error.status, [(name.encode(), value.encode()) for name, value in error.headers.items()]
            )
        except DisconnectError:
            return
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a request failed", extra={"facts": {"request_id": identity.decode(), "path": scope["path"][:200]}})
            response = json_response({"error": "internal error"}, 500)
        await self._send(response, identity, send, head=scope["method"] == "HEAD")

    async def _send(self, response: Response, identity: bytes, send: Send, *, head: bool) -> None:
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (_REQUEST_ID, identity),
            *response.headers,
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else response.body})

    async def _answer(self, scope: Message, headers: Mapping[bytes, bytes], receive: Receive) -> Response:
        method, path = scope["method"], scope["path"]
        parts = _parts_of(scope.get("raw_path") or path.encode())
        kind, name, version = _route(parts)
        if self._token is not None and not self._is_open(kind, path):
            self._require_token(headers)
        if kind == "infer":
            _require_method(method, ("POST",))
            if self._options.tracer is None:
                return await self._infer(name, version, scope, headers, receive)
            with self._options.tracer.span("infer", headers, model=name[:80]) as span:
                response = await self._infer(name, version, scope, headers, receive)
                span.set_attribute("http.response.status_code", response.status)
                return response
        if kind == "page":
            return await self._page(path, scope, headers, receive)
        _require_method(method, ("GET", "HEAD", "POST") if kind == "index" else ("GET", "HEAD"))
        if method == "POST":
            await self._body(headers, receive, _SMALL_BODY)
        return self._told(kind, name, version)

    def _told(self, kind: str, name: str, version: str) -> Response:
        """Answer from what is known, without running anything."""
        service = self.service
        if name:
            service.require_model(name, version)
        if kind == "metrics":
            return Response(metrics_text(service, triton=self._options.metrics_compat), METRICS_TYPE)
        if kind == "live":
            return json_response({"live": service.live}, 200 if service.live else 503)
        if kind == "ready":
            return self._readiness({"live": service.live, "ready": service.ready})
        if kind == "model ready":
            return self._readiness({"name": service.spec.name, "ready": service.ready})
        return json_response(_TOLD[kind](service))

    def _readiness(self, content: dict[str, object]) -> Response:
        if content["ready"]:
            return json_response(content)
        return json_response({**content, "error": f"not ready: {self.service.phase.value}"}, 503)

    async def _infer(self, name: str, version: str, scope: Message, headers: Mapping[bytes, bytes], receive: Receive) -> Response:
        started = time.perf_counter_ns()
        service = self.service
        outcome = "cancelled"
        try:
            spec = service.require_model(name, version)
            service.require_room()
            body = await self._body(headers, receive, spec.most_bytes)
            length = headers.get(_HEADER_LENGTH)
            request = decode(spec, body, None if length is None else length.decode("latin-1"))
            decoded = time.perf_counter_ns()
            model = service.model
            values = await _unless_gone(service.infer(request.rows, request.timeout), scope, receive)
            computed = time.perf_counter_ns()
            answer, head = encode(spec, request, values)
            service.counts.add("decode.ns", decoded - started)
            service.counts.add("encode.ns", time.perf_counter_ns() - computed)
            outcome = "ok"
        except ProtocolError as error:
            outcome = OUTCOME_OF_STATUS.get(error.status, "invalid")
            raise
        except DisconnectError:
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            service.note("http", outcome, started)
        bits = (_BITS, model.bits.encode())
        if head is None:
            return Response(answer, JSON_TYPE, 200, (bits,))
        return Response(answer, BINARY_TYPE, 200, (bits, (_HEADER_LENGTH, str(head).encode())))

    async def _page(self, path: str, scope: Message, headers: Mapping[bytes, bytes], receive: Receive) -> Response:
        page = self._options.pages.get(path)
        if page is None:
            raise ProtocolError(404, f"no such path: {path[:80]}")
        _require_method(scope["method"], ("GET", "HEAD") if page.method == "GET" else (page.method,))
        body = await self._body(headers, receive, page.most_bytes) if page.most_bytes else b""
        return await page.handle(Request(path, scope["query_string"].decode("latin-1"), headers, body))

    def _is_open(self, kind: str, path: str) -> bool:
        page = self._options.pages.get(path) if kind == "page" else None
        return kind in ("live", "ready") or (page is not None and page.open_to_all)

    def _require_token(self, headers: Mapping[bytes, bytes]) -> None:
        assert self._token is not None
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            raise ProtocolError(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
        """Return the body of a request, within its size and its time."""
        if headers.get(b"content-encoding", b"identity") not in (b"identity", b""):
            raise ProtocolError(415, "Content-Encoding is not supported; send the body as it is", {"Accept-Encoding": "identity"})
        claimed = headers.get(b"content-length")
        if claimed is not None and int(claimed) > most:
            raise ProtocolError(413, f"the body has {int(claimed)} bytes, expected at most {most}", {"Connection": "close"})
        message = await _next_of(receive)
        if not message.get("more_body"):
            return _within(message.get("body", b""), most)
        body = bytearray(message.get("body", b""))
        try:
            async with asyncio.timeout(self._options.receive_timeout):
                while message.get("more_body"):
                    message = await _next_of(receive)
                    body += message.get("body", b"")
                    _within(body, most)
        except TimeoutError:
            raise ProtocolError(408, f"the body did not arrive within {self._options.receive_timeout:g} s", {"Connection": "close"}) from None
        return bytes(body)


def _within(body: Any, most: int) -> Any:
    if len(body) > most:
        raise ProtocolError(413, f"the body has more than the {most} bytes that are allowed", {"Connection": "close"})
    return body


async def _next_of(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise DisconnectError
    return message


async def _unless_gone(work: Coroutine[Any, Any, Any], scope: Message, receive: Receive) -> Any:
    """Wait for work, but give it up when the client leaves.

    Our own HTTP server tells when that happens. Behind another one, its messages are listened to,
    which takes two tasks more.
    """
    listeners: list[Callable[[], object]] | None = scope.get("extensions", {}).get(GONE)
    if listeners is None:
        return await _unless_disconnected(work, receive)
    task = asyncio.current_task()
    assert task is not None
    left = False

    def leave() -> None:
        nonlocal left
        left = task.cancel()

    listeners.append(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise DisconnectError from None
    finally:
        listeners.clear()


async def _unless_disconnected(work: Coroutine[Any, Any, Any], receive: Receive) -> Any:
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise DisconnectError
    finally:
        for each in (task, left):
            if not each.done():
                each.cancel()


def _parts_of(raw_path: bytes) -> list[str]:
    """Return the parts of a path.

    It is split before it is unquoted: an encoded slash is part of a name.
    """
    return [unquote(part) for part in raw_path.partition(b"?")[0].decode("latin-1").split("/")[1:]]


_SERVER_ROUTES = {
    ("v2",): "server",
    ("v2", ""): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "models", "stats"): "stats",
    ("v2", "repository", "index"): "index",
    ("metrics",): "metrics",
    ("openapi.json",): "openapi",
}
_TOLD: Mapping[str, Callable[[Service], object]] = {
    "server": Service.server_metadata,
    "model": Service.model_metadata,
    "config": Service.config,
    "stats": lambda service: {"model_stats": [service.statistics()]},
    "index": Service.index,
    "openapi": lambda service: openapi(service.spec, service.version),
}
"""What is always told in the same way."""
_MODEL_ROUTES = {(): "model", ("ready",): "model ready", ("config",): "config", ("stats",): "stats", ("infer",): "infer"}


def _route(parts: list[str]) -> tuple[str, str, str]:
    """Return what a path is, and the name and version of the model in it."""
    if kind := _SERVER_ROUTES.get(tuple(parts)):
        return kind, "", ""
    if parts[:2] == ["v2", "models"] and len(parts) > 2 and parts[2]:
        name, rest = parts[2], parts[3:]
        version = ""
        if rest[:1] == ["versions"] and len(rest) > 1 and rest[1]:
            version, rest = rest[1], rest[2:]
        if kind := _MODEL_ROUTES.get(tuple(rest)):
            return kind, name, version
    return "page", "", ""


def _require_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        raise ProtocolError(405, f"method {method[:20]}, expected {' or '.join(allowed)}", {"Allow": ", ".join(allowed)})


def _identity(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the request's id: the client's if it is plain, otherwise a new one."""
    given = headers.get(_REQUEST_ID)
    return given if given is not None and _PLAIN_ID.fullmatch(given) else secrets.token_hex(8).encode()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


__all__ = ["Application", "ApplicationOptions", "ModelSpec", "Page", "Request", "Response", "json_response"]
