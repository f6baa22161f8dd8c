"""The Open Inference Protocol (KServe V2) over HTTP: requests decoded, answers encoded.

Takes bytes and a `ModelSpec`; returns arrays, or raises a `ProtocolError` with the status for the
client. JSON and the binary tensor extension. Knows no sockets and no model.
"""

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DATATYPES = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{word}{bits}" for kind, word in (("UINT", "uint"), ("INT", "int")) for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
"""The protocol's names of types, and NumPy's."""
NAME_OF_DTYPE = {dtype: name for name, dtype in DATATYPES.items()}
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
LONGEST_NAME = 1024
LARGEST_HEADER = 64 * 2**10
"""The most bytes of the JSON part of a request that has binary data behind it."""
_MOST_TENSORS = 32
_DEEPEST = 64
_LARGEST_SIZE = 2**31 - 1
_ID = re.compile(r"[\x20-\x7e]{0,1024}")


class ProtocolError(Exception):
    """A request that gets no result: the status and the message for the client."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class TensorShape:
    """An input or output of the model, without the batch."""

    name: str
    dtype: str
    """NumPy's name."""
    sizes: tuple[int, ...]

    @property
    def datatype(self) -> str:
        return NAME_OF_DTYPE[self.dtype]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.sizes) * np.dtype(self.dtype).itemsize

    def metadata(self) -> dict[str, object]:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.sizes]}


@dataclass(frozen=True)
class ModelSpec:
    """What clients may know of the model that is served: one input, one output of class scores."""

    name: str
    input: TensorShape
    output: TensorShape
    labels: tuple[str, ...]
    max_rows: int
    """The most rows of one request."""
    platform: str
    version: str = "1"

    @property
    def most_bytes(self) -> int:
        """The largest body of a request: all rows as JSON numbers, with room for the rest."""
        digits = {"uint8": 5, "float32": 26}.get(self.input.dtype, 26)
        return self.max_rows * math.prod(self.input.sizes) * digits + LARGEST_HEADER

    def metadata(self) -> dict[str, object]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self.platform,
            "inputs": [self.input.metadata()],
            "outputs": [self.output.metadata()],
        }


@dataclass(frozen=True)
class OutputRequest:
    """How the client wants the output."""

    binary: bool = False
    classes: int = 0
    """How many of the largest values, as labels; 0 for the values themselves."""


@dataclass(frozen=True)
class InferRequest:
    """A decoded request."""

    rows: Array
    output: OutputRequest | None
    """None if the client wants no output."""
    id: str | None = None
    timeout: float | None = None
    """Seconds."""


def decode(spec: ModelSpec, body: bytes, header_length: str | None) -> InferRequest:
    """Decode a request of the HTTP protocol."""
    if header_length is None:
        return _decoded(spec, _json_of(body), b"")
    length = _header_length(header_length, len(body))
    if length == 0:
        return _raw(spec, body)
    return _decoded(spec, _json_of(body[:length]), memoryview(body)[length:])


def _header_length(text: str, available: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        _refuse(f"{HEADER_LENGTH} is {text[:40]!r}, expected a whole number")
    length = int(text)
    if length > available:
        _refuse(f"{HEADER_LENGTH} is {length}, but the body has {available} bytes")
    if length > LARGEST_HEADER:
        _refuse(f"{HEADER_LENGTH} is {length}, expected at most {LARGEST_HEADER}")
    return length


def _raw(spec: ModelSpec, body: bytes) -> InferRequest:
    """Decode a body that is nothing but the values of the only input."""
    rows, rest = divmod(len(body), spec.input.row_bytes)
    if rest or not rows:
        _refuse(f"raw binary data of {len(body)} bytes, expected a multiple of {spec.input.row_bytes}, one {spec.input.name} each")
    return InferRequest(_of_bytes(spec, body, rows), OutputRequest(binary=True))


def _of_bytes(spec: ModelSpec, data: bytes | memoryview, rows: int) -> Array:
    _require_rows(spec, rows)
    flat: Array = np.frombuffer(data, np.dtype(spec.input.dtype).newbyteorder("<"))
    return flat.reshape(rows, *spec.input.sizes)


def _require_rows(spec: ModelSpec, rows: int) -> None:
    if not 1 <= rows <= spec.max_rows:
        _refuse(f"{spec.input.name} has a batch of {rows}, expected 1 to {spec.max_rows}")


def _json_of(text: bytes | memoryview) -> Mapping[str, Any]:
    raw = bytes(text)
    _require_flat(raw)
    try:
        content = json.loads(raw, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("the body is not valid JSON")
    if not isinstance(content, dict):
        _refuse("the body is not a JSON object")
    return content


def _require_flat(text: bytes) -> None:
    """Refuse deep nesting before the parser, which recurses, sees it.

    Brackets in texts count too. So a name full of brackets is refused, which costs nobody anything.
    """
    if text.count(b"[") + text.count(b"{") <= _DEEPEST:
        return
    depth = 0
    for bracket in re.findall(rb"[\[{]+|[\]}]+", text):
        depth += len(bracket) if bracket[0] in b"[{" else -len(bracket)
        if depth > _DEEPEST:
            _refuse(f"the JSON is nested deeper than {_DEEPEST}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse("the JSON has the same key twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    _refuse(f"the JSON holds {name}, which is not a number of JSON")


def _decoded(spec: ModelSpec, content: Mapping[str, Any], data: bytes | memoryview) -> InferRequest:
    identity = content.get("id")
    if identity is not None and not (isinstance(identity, str) and _ID.fullmatch(identity)):
        _refuse("id is not a text of at most 1024 printable characters")
    parameters = _object(content.get("parameters"), "parameters")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        _refuse("inputs is not a list of tensors; the model needs " + spec.input.name)
    if len(inputs) > _MOST_TENSORS:
        _refuse(f"{len(inputs)} inputs, expected at most {_MOST_TENSORS}")
    if len(inputs) > 1:
        _refuse(f"{len(inputs)} inputs, the model has one: {spec.input.name}")
    rows, used = _input(spec, inputs[0], data)
    if used != len(data):
        _refuse(f"{len(data)} bytes of binary data, the inputs claim {used}")
    binary = _flag(parameters, "binary_data_output")
    return InferRequest(rows, _requested_output(spec, content.get("outputs"), binary=binary), identity, _timeout(parameters))


def _input(spec: ModelSpec, tensor: object, data: bytes | memoryview) -> tuple[Array, int]:
    """Return the rows of the input, and how many bytes of binary data they took."""
    if not isinstance(tensor, dict):
        _refuse("an input is not a JSON object")
    expected = spec.input
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if name != expected.name:
        _refuse(f"input {_shown(name)} is not known, expected {expected.name}")
    if datatype != expected.datatype:
        _refuse(f"{expected.name} has datatype {_shown(datatype)}, expected {expected.datatype}")
    rows = rows_of_shape(spec, tensor.get("shape"))
    size = _object(tensor.get("parameters"), f"parameters of {expected.name}").get("binary_data_size")
    if size is None:
        return _of_json(spec, tensor.get("data"), rows), 0
    if "data" in tensor:
        _refuse(f"{expected.name} has both data and binary_data_size, expected one of them")
    if not _is_whole(size) or size != rows * expected.row_bytes:
        _refuse(f"{expected.name} has binary_data_size {_shown(size)}, its shape takes {rows * expected.row_bytes}")
    if len(data) < size:
        _refuse(f"{expected.name} claims {size} bytes of binary data, the body has {len(data)}")
    return _of_bytes(spec, data[:size], rows), size


def rows_of_shape(spec: ModelSpec, shape: object) -> int:
    """Return the number of rows of a claimed shape, which must fit the model."""
    expected = f"[1 to {spec.max_rows}, {', '.join(map(str, spec.input.sizes))}]"
    if not isinstance(shape, list) or len(shape) > _MOST_TENSORS or not all(_is_whole(size) for size in shape):
        _refuse(f"{spec.input.name} has a shape that is not a list of whole numbers, expected {expected}")
    if len(shape) != 1 + len(spec.input.sizes) or tuple(shape[1:]) != spec.input.sizes or not 1 <= shape[0] <= spec.max_rows:
        _refuse(f"{spec.input.name} has shape {[_clipped(size) for size in shape]}, expected {expected}")
    return int(shape[0])


def _of_json(spec: ModelSpec, values: object, rows: int) -> Array:
    expected = spec.input
    if not isinstance(values, list):
        _refuse(f"{expected.name} has no data")
    try:
        array = np.asarray(values)
    except ValueError:
        _refuse(f"{expected.name} has data of uneven lengths")
    shape = (rows, *expected.sizes)
    if array.shape not in ((math.prod(shape),), shape):
        _refuse(
            f"{expected.name} has data of shape {[_clipped(size) for size in array.shape[:8]]}, expected {math.prod(shape)} values for {list(shape)}"
        )
    return _cast(expected, array).reshape(shape)


def _cast(expected: TensorShape, array: Array) -> Array:
    dtype = np.dtype(expected.dtype)
    if array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf") or (dtype.kind == "b") != (array.dtype.kind == "b"):
        _refuse(f"{expected.name} has data that are not all {expected.datatype}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            _refuse(f"{expected.name} has values outside {limits.min} to {limits.max}, the range of {expected.datatype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        _refuse(f"{expected.name} has values outside the range of {expected.datatype}")
    return cast


def _requested_output(spec: ModelSpec, outputs: object, *, binary: bool | None) -> OutputRequest | None:
    if outputs is None:
        return OutputRequest(binary=bool(binary))
    if not isinstance(outputs, list) or len(outputs) > _MOST_TENSORS:
        _refuse(f"outputs is not a list of at most {_MOST_TENSORS} outputs")
    requests = [_one_output(spec, each, binary=binary) for each in outputs]
    if len(requests) > 1:
        _refuse(f"output {spec.output.name} is requested {len(requests)} times, expected once")
    return requests[0] if requests else OutputRequest(binary=bool(binary))


def _one_output(spec: ModelSpec, output: object, *, binary: bool | None) -> OutputRequest:
    if not isinstance(output, dict):
        _refuse("an output is not a JSON object")
    if output.get("name") != spec.output.name:
        _refuse(f"output {_shown(output.get('name'))} is not known, expected {spec.output.name}")
    parameters = _object(output.get("parameters"), f"parameters of {spec.output.name}")
    own = _flag(parameters, "binary_data")
    return OutputRequest(bool(binary) if own is None else own, class_count(spec, parameters.get("classification", 0)))


def class_count(spec: ModelSpec, value: object) -> int:
    """Return how many classes a request wants."""
    if not _is_whole(value) or not 0 <= value <= _LARGEST_SIZE:
        _refuse(f"classification of {spec.output.name} is {_shown(value)}, expected a number of classes")
    return min(value, spec.output.sizes[-1])


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return the request's own timeout, which Triton's clients send in microseconds."""
    value = parameters.get("timeout")
    return None if value is None else timeout_of(value)


def timeout_of(microseconds: object) -> float | None:
    """Return a timeout in seconds; 0 means none, as for Triton."""
    if not _is_whole(microseconds) or not 0 <= microseconds < 2**63:
        _refuse(f"timeout is {_shown(microseconds)}, expected microseconds")
    return microseconds / 1e6 or None


def _object(value: object, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(f"{what} is not a JSON object")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(f"{name} is {_shown(value)}, expected true or false")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """Return a value of the client's for a message: short, and safe in a log."""
    text = json.dumps(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _clipped(size: int) -> int | str:
    return size if abs(size) < 2**63 else "more than 2^63"


def _refuse(message: str) -> NoReturn:
    raise ProtocolError(400, message)


def labels_of(spec: ModelSpec, values: Array, classes: int) -> list[str]:
    """Return the classification output: "value:index:label" of the largest values of each row."""
    order = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :classes]
    texts = []
    for row, chosen in zip(values, order, strict=True):
        texts += [f"{float(row[index]):f}:{index}:{spec.labels[index]}" for index in chosen]
    return texts


def packed_texts(texts: Sequence[str]) -> bytes:
    """Return texts in the protocol's binary form: each behind its length."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def encode(spec: ModelSpec, request: InferRequest, values: Array, extra: Mapping[str, object] | None = None) -> tuple[bytes, int | None]:
    """Encode an answer; return the body, and the length of its JSON part if binary data follow."""
    output = request.output or OutputRequest()
    described: dict[str, object]
    if output.classes:
        texts = labels_of(spec, values, output.classes)
        described = {"name": spec.output.name, "datatype": "BYTES", "shape": [len(values), output.classes]}
        data: object = texts
        binary = packed_texts(texts) if output.binary else b""
    else:
        described = {"name": spec.output.name, "datatype": spec.output.datatype, "shape": list(values.shape)}
        data = None if output.binary else values.ravel().tolist()
        binary = values.tobytes() if output.binary else b""
    if output.binary:
        described["parameters"] = {"binary_data_size": len(binary)}
    else:
        described["data"] = data
    whole: dict[str, object] = {"model_name": spec.name, "model_version": spec.version, "outputs": [described]}
    if request.id is not None:
        whole = {"id": request.id, **whole}
    if extra:
        whole["parameters"] = dict(extra)
    try:
        head = json.dumps(whole, allow_nan=False).encode()
    except ValueError as error:
        raise ProtocolError(500, f"{spec.output.name} holds values that JSON cannot; request binary_data") from error
    return (head + binary, len(head)) if output.binary else (head, None)
