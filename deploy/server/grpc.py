"""The Open Inference Protocol over gRPC, with the same service behind it as over HTTP.

Takes a `Service` and an address. Limits messages to what the model can take.
"""

import hmac
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from deploy.compare.bits import Array
from deploy.server.messages import CLASSES, DATA_TYPES, FORMATS, METHODS, PACKAGE, SERVICE
from deploy.server.protocol import (
    InferRequest,
    ModelSpec,
    OutputRequest,
    ProtocolError,
    class_count,
    labels_of,
    packed_texts,
    rows_of_shape,
    timeout_of,
)
from deploy.server.service import OUTCOME_OF_STATUS, Service
from export.errors import UsageError

log = logging.getLogger("samegraph.server")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}
_OPEN = ("ServerLive", "ServerReady", "ModelReady")
"""The calls that need no token."""
_OVERHEAD = 64 * 2**10
_WIDEST_NUMBER = 10
"""The most bytes of one number in a message that does not send raw contents."""


def decode_message(spec: ModelSpec, message: Any) -> InferRequest:
    """Decode a ModelInferRequest."""
    if len(message.inputs) != 1:
        _refuse(f"{len(message.inputs)} inputs, the model has one: {spec.input.name}")
    rows = _rows(spec, message.inputs[0], message.raw_input_contents)
    outputs = [_output(spec, each) for each in message.outputs]
    if len(outputs) > 1:
        _refuse(f"output {spec.output.name} is requested {len(outputs)} times, expected once")
    timeout = message.parameters["timeout"].int64_param if "timeout" in message.parameters else None
    output = outputs[0] if outputs else OutputRequest(binary=True)
    return InferRequest(rows, output, message.id or None, None if timeout is None else timeout_of(timeout))


def _rows(spec: ModelSpec, tensor: Any, raw: Any) -> Array:
    expected = spec.input
    if tensor.name != expected.name:
        _refuse(f"input {tensor.name[:80]!r} is not known, expected {expected.name}")
    if tensor.datatype != expected.datatype:
        _refuse(f"{expected.name} has datatype {tensor.datatype[:20]!r}, expected {expected.datatype}")
    number = rows_of_shape(spec, list(tensor.shape[:64]))
    wanted = number * math.prod(expected.sizes)
    if len(raw):
        if len(raw) != 1 or tensor.HasField("contents"):
            _refuse(f"{expected.name} has {len(raw)} raw contents, expected one and no other contents")
        if len(raw[0]) != number * expected.row_bytes:
            _refuse(f"{expected.name} has {len(raw[0])} raw bytes, its shape takes {number * expected.row_bytes}")
        flat: Array = np.frombuffer(raw[0], np.dtype(expected.dtype).newbyteorder("<"))
        return flat.reshape(number, *expected.sizes)
    values = np.array(getattr(tensor.contents, _CONTENTS[expected.dtype]))
    if values.size != wanted:
        _refuse(f"{expected.name} has {values.size} values, its shape takes {wanted}")
    dtype = np.dtype(expected.dtype)
    if dtype.kind in "iu" and (int(values.min()) < np.iinfo(dtype).min or int(values.max()) > np.iinfo(dtype).max):
        _refuse(f"{expected.name} has values outside the range of {expected.datatype}")
    return values.astype(dtype).reshape(number, *expected.sizes)


def _output(spec: ModelSpec, output: Any) -> OutputRequest:
    if output.name != spec.output.name:
        _refuse(f"output {output.name[:80]!r} is not known, expected {spec.output.name}")
    classes = output.parameters["classification"].int64_param if "classification" in output.parameters else 0
    return OutputRequest(binary=True, classes=class_count(spec, classes))


def encode_message(spec: ModelSpec, request: InferRequest, values: Array) -> Any:
    """Encode a ModelInferResponse."""
    response = CLASSES["ModelInferResponse"](model_name=spec.name, model_version=spec.version, id=request.id or "")
    output = request.output or OutputRequest()
    if output.classes:
        response.outputs.add(name=spec.output.name, datatype="BYTES", shape=[len(values), output.classes])
        response.raw_output_contents.append(packed_texts(labels_of(spec, values, output.classes)))
    else:
        response.outputs.add(name=spec.output.name, datatype=spec.output.datatype, shape=list(values.shape))
        response.raw_output_contents.append(values.tobytes())
    return response


def _refuse(message: str) -> NoReturn:
    raise ProtocolError(400, message)


class GrpcServer:
    """The gRPC endpoint of one process."""

    def __init__(self, service: Service, token: str | None = None) -> None:
        self._service = service
        self._token = None if token is None else f"Bearer {token}"
        self._server: Any = None

    async def start(self, address: str, credentials: Any = None) -> int:
        """Listen; return the port."""
        spec = self._service.spec
        largest = spec.max_rows * math.prod(spec.input.sizes) * _WIDEST_NUMBER + _OVERHEAD
        options = [
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),
            ("grpc.max_metadata_size", 16 * 2**10),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{PACKAGE}.{SERVICE}", self._handlers()),))
        try:
            port: int = self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise UsageError(f"gRPC cannot listen on {address}; choose another --grpc-port") from error
        await self._server.start()
        return port

    async def stop(self, grace: float) -> None:
        """Take no more calls; give those that run some time."""
        if self._server is not None:
            await self._server.stop(grace)

    def _handlers(self) -> dict[str, Any]:
        told: Mapping[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: CLASSES["ServerLiveResponse"](live=self._service.live),
            "ServerReady": lambda _: CLASSES["ServerReadyResponse"](ready=self._service.ready),
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: CLASSES["ServerMetadataResponse"](**self._service.server_metadata()),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda _: CLASSES["RepositoryIndexResponse"](models=self._service.index()),
        }

        def answering(name: str) -> Callable[[Any, Any], Awaitable[Any]]:
            async def answer(request: Any, context: Any) -> Any:
                return told[name](request)

            return self._guarded(METHODS[name][0], answer, open_to_all=name in _OPEN)

        handlers = {name: _unary(name, answering(name)) for name in told}
        handlers["ModelInfer"] = _unary("ModelInfer", self._guarded("ModelInferRequest", self._infer))
        stream = grpc.stream_stream_rpc_method_handler(self._stream, None, CLASSES["ModelStreamInferResponse"].SerializeToString)
        return {**handlers, "ModelStreamInfer": stream}

    def _guarded(self, kind: str, answer: Callable[[Any, Any], Awaitable[Any]], *, open_to_all: bool = False) -> Callable[[Any, Any], Awaitable[Any]]:
        """Turn errors into status codes, with nothing internal in the message."""

        async def guarded(content: bytes, context: Any) -> Any:
            try:
                if not open_to_all:
                    self._require_token(context)
                return await answer(_parsed(kind, content), context)
            except ProtocolError as error:
                await context.abort(_CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), error.message)
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                log.exception("a call failed")
                await context.abort(grpc.StatusCode.INTERNAL, "internal error")

        return guarded

    def _require_token(self, context: Any) -> None:
        if self._token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), self._token.encode()):
            raise ProtocolError(401, "a bearer token is needed")

    async def _infer(self, request: Any, context: Any) -> Any:
        started = time.perf_counter_ns()
        service, outcome = self._service, "cancelled"
        try:
            spec = service.require_model(request.model_name, request.model_version)
            decoded = decode_message(spec, request)
            left = context.time_remaining() if context is not None else None
            limits = [each for each in (decoded.timeout, left) if each is not None]
            values = await service.infer(decoded.rows, min(limits, default=None))
            response = encode_message(spec, decoded, values)
            outcome = "ok"
        except ProtocolError as error:
            outcome = OUTCOME_OF_STATUS.get(error.status, "invalid")
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            service.note("grpc", outcome, started)
        return response

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answer a stream of requests in their order, errors as messages, as Triton does."""
        answer = CLASSES["ModelStreamInferResponse"]
        try:
            self._require_token(context)
        except ProtocolError as error:
            await context.abort(_CODES[error.status], error.message)
        async for content in requests:
            try:
                yield answer(infer_response=await self._infer(_parsed("ModelInferRequest", content), None))
            except ProtocolError as error:
                yield answer(error_message=error.message)
            except Exception:
                log.exception("a call failed")
                yield answer(error_message="internal error")

    def _model_ready(self, request: Any) -> Any:
        self._service.require_model(request.name, request.version)
        return CLASSES["ModelReadyResponse"](ready=self._service.ready)

    def _model_metadata(self, request: Any) -> Any:
        self._service.require_model(request.name, request.version)
        return CLASSES["ModelMetadataResponse"](**self._service.spec.metadata())

    def _config(self, request: Any) -> Any:
        self._service.require_model(request.name, request.version)
        config: dict[str, Any] = self._service.config()
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = DATA_TYPES[tensor["data_type"].removeprefix("TYPE_")]
            if "format" in tensor:
                tensor["format"] = FORMATS[tensor["format"]]
        return CLASSES["ModelConfigResponse"](config=config)

    def _statistics(self, request: Any) -> Any:
        if request.name:
            self._service.require_model(request.name, request.version)
        return CLASSES["ModelStatisticsResponse"](model_stats=[self._service.statistics()])


def _unary(name: str, handler: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    # The handler parses the request itself: gRPC would answer what it cannot parse with UNKNOWN.
    return grpc.unary_unary_rpc_method_handler(handler, None, CLASSES[METHODS[name][1]].SerializeToString)


def _parsed(kind: str, content: bytes) -> Any:
    try:
        return CLASSES[kind].FromString(content)
    except DecodeError as error:
        raise ProtocolError(400, f"the request is not a {kind}") from error
