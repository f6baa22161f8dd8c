"""Messages between processes: arrays arrive as sent; silence and nonsense are told apart."""

import os
import struct
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from deploy.sandbox.wire import ClosedError, LateError, Message, receive, send


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # a test closed it


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "uint8", "int64", "bool"])
def test_arrays_arrive_bit_by_bit(pipe: tuple[int, int], dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    arrays = {"a": np.arange(6).reshape(2, 3).astype(kind), "none": np.zeros((0, 2), kind), "one": np.array(1).astype(kind)}
    send(pipe[1], Message({"do": "run", "number": 3}, {**arrays, "turned": arrays["a"].T}))
    found = receive(pipe[0], 5)
    assert found.head == {"do": "run", "number": 3}
    for name, array in {**arrays, "turned": arrays["a"].T}.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert found.arrays[name].tobytes() == array.tobytes()
    found.arrays["a"][0, 0] = 1  # the receiver may write into them


def test_silence_and_leaving(pipe: tuple[int, int]) -> None:
    with pytest.raises(LateError):
        receive(pipe[0], 0.01)
    os.write(pipe[1], b"\x05\0\0")
    with pytest.raises(LateError):
        receive(pipe[0], 0.01)
    os.close(pipe[1])
    with pytest.raises(ClosedError):
        receive(pipe[0], 5)


def test_a_claim_of_gigabytes_is_not_allocated(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], struct.pack("<Q", 2**40))
    with pytest.raises(ClosedError):
        receive(pipe[0], 5)
    head = b'{"head": {}, "arrays": [["x", "float32", [1099511627776]]]}'
    os.write(pipe[1], struct.pack("<Q", len(head)) + head)
    with pytest.raises(ClosedError):
        receive(pipe[0], 5)


def test_many_small_claims_are_no_way_around_the_limit(pipe: tuple[int, int]) -> None:
    send(pipe[1], Message({}, {str(number): np.zeros(16, np.uint8) for number in range(5)}))
    assert len(receive(pipe[0], 5, most_bytes=80).arrays) == 5
    send(pipe[1], Message({}, {str(number): np.zeros(16, np.uint8) for number in range(5)}))
    with pytest.raises(ClosedError):
        receive(pipe[0], 5, most_bytes=79)


def test_nobody_reads(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(ClosedError):
        send(pipe[1], Message({}))
