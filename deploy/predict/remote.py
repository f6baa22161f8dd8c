"""Asks a server of the Open Inference Protocol (V2, HTTP) for logits, with binary tensor data.

Takes the address and what the bundle says of its model. Uses Python's own HTTP client alone.
"""

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.predict.predictor import Logits, LogitSource
from export.bundle import Facts
from export.errors import DamagedError, NotHereError, UsageError
from export.preprocess import Pixels

_SECONDS = 60
_LARGEST_ANSWER = 64 * 2**20
_HEADER_LENGTH = "Inference-Header-Content-Length"
_MODELS = "/v2/models/"


def served_at(url: str, facts: Facts) -> LogitSource:
    """Return the server at this address as a source of logits.

    The address may end in /v2/models/NAME; otherwise the server must have one model. It must take
    what the bundle's model takes.
    """
    model = _model_address(url)
    _require_the_same_ends(model, facts)

    def logits(pixels: Pixels) -> Logits:
        return _answer(model, facts, pixels)

    # One image at a time: how many a server takes at once is not part of the protocol.
    return LogitSource(logits, {"url": model}, batch=1)


def _model_address(url: str) -> str:
    address = url.rstrip("/")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"--url {url!r} is not an address; expected http://HOST:PORT or http://HOST:PORT/v2/models/NAME")
    if _MODELS in f"{parts.path}/":
        return address
    found = _json_of(f"{address}/v2/repository/index", {})
    names = sorted({str(each.get("name")) for each in found if isinstance(each, Mapping)}) if isinstance(found, list) else []
    if len(names) != 1:
        raise UsageError(f"{address} serves {len(names)} models ({', '.join(names[:10])}); name one: --url {address}{_MODELS}NAME")
    return f"{address}{_MODELS}{urllib.parse.quote(names[0], safe='')}"


def _require_the_same_ends(model: str, facts: Facts) -> None:
    metadata = _json_of(model, None)
    for key, entry, kind in (("inputs", facts.input, "UINT8"), ("outputs", facts.output, "FP32")):
        told = metadata.get(key) if isinstance(metadata, Mapping) else None
        ends = {str(each.get("name")): each for each in told or () if isinstance(each, Mapping)} if isinstance(told, list) else {}
        end = ends.get(entry.name, {})
        found = (end.get("datatype"), end.get("shape"))
        if found[0] != kind or not _fits(found[1], entry.shape):
            wanted = f"{entry.name}, {kind}, batch x {' x '.join(map(str, entry.shape[1:]))}"
            raise UsageError(f"{model} serves another model than this bundle's: its {key} are {json.dumps(told)[:200]}, expected {wanted}")


def _fits(told: object, wanted: list[int | None]) -> bool:
    """Whether a shape of the protocol, in which -1 is free, is the model's."""
    return isinstance(told, list) and len(told) == len(wanted) and told[1:] == wanted[1:]


def _answer(model: str, facts: Facts, pixels: Pixels) -> Logits:
    tensor = np.ascontiguousarray(pixels).tobytes()
    end = {"name": facts.input.name, "datatype": "UINT8", "shape": list(pixels.shape), "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [end], "outputs": [{"name": facts.output.name, "parameters": {"binary_data": True}}]}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    body, length = _sent(urllib.request.Request(f"{model}/infer", head + tensor, headers))
    try:
        return _logits_in(body, length, facts.output.name)
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError, OverflowError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedError(f"{model} answers with something that is not the protocol's ({what}); check the address") from error


def _logits_in(body: bytes, length: str | None, name: str) -> Logits:
    """Return the output of that name: binary data follow the JSON, in the order of the outputs."""
    cut = len(body) if length is None else int(length)
    rest = body[cut:]
    for output in json.loads(body[:cut])["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        data, rest = (None, rest) if size is None else (rest[:size], rest[size:])
        if output["name"] == name:
            return _array(output, data)
    raise ValueError(f"no output {name!r}")


def _array(output: Mapping[str, Any], data: bytes | None) -> Logits:
    shape = [int(size) for size in output["shape"]]
    if output["datatype"] != "FP32" or min(shape, default=0) < 1 or math.prod(shape) * 4 > _LARGEST_ANSWER:
        raise ValueError(f"{output['datatype']} of shape {shape}")
    values = np.array(output["data"], np.float32) if data is None else np.frombuffer(data, "<f4")
    return values.astype(np.float32).reshape(shape)


def _json_of(url: str, sent: object) -> Any:
    data = None if sent is None else json.dumps(sent).encode()
    body, _ = _sent(urllib.request.Request(url, data, {"Content-Type": "application/json"}))
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{url} does not answer in JSON; check the address") from error


def _sent(request: urllib.request.Request) -> tuple[bytes, str | None]:
    """Return the body of the answer, and how long its JSON is if more follows."""
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            body: bytes = answer.read(_LARGEST_ANSWER + 1)
            if len(body) > _LARGEST_ANSWER:
                raise DamagedError(f"{url} answers with more than {_LARGEST_ANSWER} bytes; check the address")
            return body, answer.headers.get(_HEADER_LENGTH)
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason_in(error.read(10_000))
        kind = NotHereError if error.code in (404, 429, 503) else UsageError
        raise kind(f"{url} answers {error.code} {error.reason}{reason}; check the address and the server") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotHereError(f"{url} cannot be asked: {getattr(error, 'reason', None) or error}; start the server, or check the address") from error


def _reason_in(body: bytes) -> str:
    """Return what the protocol's error says, if the body is one."""
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({told[:300]})" if isinstance(told, str) else ""
