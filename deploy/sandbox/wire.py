"""What a host process and its owner send each other: a JSON head and the bytes of arrays.

Nothing is unpickled. Takes file descriptors. A hostile side can cost the other time, but not
memory: sizes are checked before they are read.
"""

import json
import math
import os
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from deploy.runners.runner import Array

_HEAD = struct.Struct("<Q")
_LARGEST_HEAD = 64 * 2**20
_PIECE = 2**20
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class ClosedError(Exception):
    """The other side is gone."""


class LateError(Exception):
    """The other side did not answer in time."""


@dataclass(frozen=True)
class Message:
    """One message."""

    head: Mapping[str, object]
    arrays: Mapping[str, Array] = field(default_factory=dict)


def send(descriptor: int, message: Message) -> None:
    """Write a message, as long as the other side reads."""
    arrays = {name: np.asarray(array, order="C") for name, array in message.arrays.items()}
    shapes = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({"head": dict(message.head), "arrays": shapes}).encode()
    try:
        _write(descriptor, memoryview(_HEAD.pack(len(head)) + head))
        for array in arrays.values():
            _write(descriptor, memoryview(array.tobytes()))
    except BrokenPipeError as error:
        raise ClosedError from error


def receive(descriptor: int, seconds: float | None = None, most_bytes: int = 2**34) -> Message:
    """Read a message. `seconds` is the time until its last byte; `most_bytes` is the limit for all
    of its arrays together."""
    until = None if seconds is None else time.monotonic() + seconds
    (size,) = _HEAD.unpack(_read(descriptor, _HEAD.size, until))
    if size > _LARGEST_HEAD:
        raise ClosedError
    content = json.loads(bytes(_read(descriptor, size, until)))
    arrays = {}
    for name, dtype, shape in content["arrays"]:
        kind = _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
        num_bytes = math.prod(shape) * kind.itemsize
        most_bytes -= num_bytes
        if most_bytes < 0:
            raise ClosedError
        arrays[name] = np.frombuffer(_read(descriptor, num_bytes, until), kind).reshape(shape)
    return Message(content["head"], arrays)


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content[:_PIECE]) :]


def _read(descriptor: int, size: int, until: float | None) -> bytearray:
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        _wait(descriptor, until)
        got = os.readv(descriptor, [view[done : done + _PIECE]])
        if not got:
            raise ClosedError
        done += got
    return content


def _wait(descriptor: int, until: float | None) -> None:
    if until is not None and not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        raise LateError
