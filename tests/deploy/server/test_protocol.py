"""Requests decoded and answers encoded: JSON and binary, and a refusal for everything else."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_model import SHAPE, SPEC, expected, images

from deploy.server.grpc import decode_message, encode_message
from deploy.server.messages import CLASSES
from deploy.server.protocol import InferRequest, OutputRequest, ProtocolError, decode, encode

ROWS = images(2)


def tensor(**changes: Any) -> dict[str, Any]:
    whole = {"name": "image", "datatype": "UINT8", "shape": [2, *SHAPE], "data": ROWS.ravel().tolist(), **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def body(*inputs: Any, **other: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [tensor()], **other}).encode()


def binary(head: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    text = json.dumps(head).encode()
    return text + data, str(len(text))


def refusal(content: bytes, length: str | None = None) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode(SPEC, content, length)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize("data", [ROWS.ravel().tolist(), ROWS.tolist()], ids=["flat", "nested"])
def test_json_is_read_flat_and_nested(data: object) -> None:
    request = decode(SPEC, body(tensor(data=data), id="7", parameters={"timeout": 250_000}), None)
    np.testing.assert_array_equal(request.rows, ROWS)
    assert (request.id, request.timeout, request.output) == ("7", 0.25, OutputRequest())


def test_binary_is_read() -> None:
    head = {"inputs": [tensor(data=..., parameters={"binary_data_size": ROWS.nbytes})], "parameters": {"binary_data_output": True}}
    content, length = binary(head, ROWS.tobytes())
    request = decode(SPEC, content, length)
    np.testing.assert_array_equal(request.rows, ROWS)
    assert request.output == OutputRequest(binary=True)


def test_raw_binary_is_read() -> None:
    request = decode(SPEC, ROWS.tobytes(), "0")
    np.testing.assert_array_equal(request.rows, ROWS)
    assert request.output == OutputRequest(binary=True)


def nested(depth: int) -> bytes:
    return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"


SIZE = {"binary_data_size": ROWS.nbytes}
REFUSED = {
    "no JSON": (b"{", "not valid JSON"),
    "no object": (b"[]", "not a JSON object"),
    "bytes": (b"\xff\xfe", "not valid JSON"),
    "NaN": (body().replace(b'"data": [', b'"data": [NaN, '), "NaN"),
    "the same key twice": (b'{"inputs": [], "inputs": []}', "same key twice"),
    "depth 65": (nested(64), "nested deeper than 64"),
    "depth 150,000": (nested(150_000), "nested deeper than 64"),
    "only opening": (b"[" * 1_000_000, "nested deeper than 64"),
    "no inputs": (b"{}", "inputs is not a list"),
    "inputs as a text": (b'{"inputs": "image"}', "inputs is not a list"),
    "two inputs": (body(tensor(), tensor()), "the model has one"),
    "1,000 inputs": (body(*[tensor(data=...)] * 1000), "at most 32"),
    "input as a number": (body(7), "not a JSON object"),
    "another name": (body(tensor(name="x")), '"x" is not known, expected image'),
    "a long name": (body(tensor(name="x" * 10**6)), "is not known"),
    "a name as a list": (body(tensor(name=["image"])), "is not known"),
    "another type": (body(tensor(datatype="FP32")), "expected UINT8"),
    "no shape": (body(tensor(shape=...)), "not a list of whole numbers"),
    "shape with 0": (body(tensor(shape=[0, *SHAPE], data=[])), r"has shape \[0, 1, 2, 2\]"),
    "negative": (body(tensor(shape=[-2, *SHAPE])), r"has shape \[-2"),
    "product that overflows": (body(tensor(shape=[2**4, 2**60 + 2])), "has shape"),
    "2^63": (body(tensor(shape=[2**63, *SHAPE])), "more than 2"),
    "10^4000": (body(tensor(shape=[10**4000, *SHAPE])), "has shape"),
    "a fraction": (body(tensor(shape=[2.0, *SHAPE])), "not a list of whole numbers"),
    "true for a size": (body(tensor(shape=[True, *SHAPE])), "not a list of whole numbers"),
    "rank 10,000": (body(tensor(shape=[1] * 10_000)), "not a list of whole numbers"),
    "too many rows": (body(tensor(shape=[17, *SHAPE], data=[0] * 68)), r"1 to 16"),
    "too few values": (body(tensor(data=[1, 2])), "expected 8 values"),
    "too many values": (body(tensor(data=[0] * 9)), "expected 8 values"),
    "uneven": (body(tensor(data=[[1, 2], [3]])), "uneven|shape"),
    "texts": (body(tensor(data=["1"] * 8)), "not all UINT8"),
    "fractions": (body(tensor(data=[0.5] * 8)), "not all UINT8"),
    "truth values": (body(tensor(data=[True] * 8)), "not all UINT8"),
    "256": (body(tensor(data=[256] * 8)), "outside 0 to 255"),
    "-1": (body(tensor(data=[-1] * 8)), "outside 0 to 255"),
    "null": (body(tensor(data=[None] * 8)), "not all UINT8"),
    "2^80": (body(tensor(data=[2**80] * 8)), "not all UINT8|outside"),
    "data and binary": (body(tensor(parameters=SIZE)), "both data and binary"),
    "id as a number": (body(id=7), "id is not a text"),
    "id with a line break": (body(id="a\nb"), "id is not a text"),
    "parameters as a list": (body(parameters=[]), "parameters is not a JSON object"),
    "timeout as a text": (body(parameters={"timeout": "1"}), "expected microseconds"),
    "another output": (body(outputs=[{"name": "x"}]), "expected logits"),
    "the output twice": (body(outputs=[{"name": "logits"}] * 2), "expected once"),
    "classification -1": (body(outputs=[{"name": "logits", "parameters": {"classification": -1}}]), "number of classes"),
    "binary as a text": (body(outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]), "true or false"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_wrong_is_named(case: str) -> None:
    content, message = REFUSED[case]
    found = refusal(content)
    assert re.search(message, found)
    assert len(found) < 400


@pytest.mark.parametrize(
    ("claimed", "data", "length", "message"),
    [
        (8, ROWS.tobytes()[:-1], None, "claims 8 bytes of binary data, the body has 7"),
        (8, ROWS.tobytes() + b"x", None, "9 bytes of binary data, the inputs claim 8"),
        (9, ROWS.tobytes() + b"x", None, "binary_data_size 9, its shape takes 8"),
        (2**62, ROWS.tobytes(), None, "binary_data_size"),
        (-1, ROWS.tobytes(), None, "binary_data_size -1"),
        (8, ROWS.tobytes(), "100000", "but the body has"),
        (8, ROWS.tobytes(), "-1", "expected a whole number"),
        (8, ROWS.tobytes(), "0x10", "expected a whole number"),
        (8, ROWS.tobytes(), "1" * 100, "expected a whole number"),
        (8, ROWS.tobytes(), "5", "not valid JSON"),
    ],
)
def test_claimed_sizes_are_checked(claimed: int, data: bytes, length: str | None, message: str) -> None:
    content, right = binary({"inputs": [tensor(data=..., parameters={"binary_data_size": claimed})]}, data)
    assert message in refusal(content, length or right)


@pytest.mark.parametrize("data", [b"", b"123", b"\0" * 4 * 17])
def test_raw_binary_of_another_size_is_refused(data: bytes) -> None:
    assert "raw binary data" in refusal(data, "0") or "batch of 17" in refusal(data, "0")


def test_answers_in_json_and_binary_have_the_same_bits() -> None:
    values = expected(ROWS) / np.float32(3)
    text, head = encode(SPEC, InferRequest(ROWS, OutputRequest(), "a"), values)
    assert head is None
    whole = json.loads(text)
    assert (whole["id"], whole["model_name"], whole["model_version"]) == ("a", "stub", "1")
    np.testing.assert_array_equal(np.array(whole["outputs"][0]["data"], np.float32).reshape(2, 3), values)
    packed, head = encode(SPEC, InferRequest(ROWS, OutputRequest(binary=True)), values)
    assert head is not None
    described = json.loads(packed[:head])["outputs"][0]
    assert described["parameters"] == {"binary_data_size": values.nbytes}
    assert packed[head:] == values.tobytes()


def test_classification_names_the_largest() -> None:
    values = np.array([[1.5, 3.0, 3.0]], np.float32)
    whole = json.loads(encode(SPEC, InferRequest(ROWS[:1], OutputRequest(classes=2)), values)[0])
    assert whole["outputs"][0] == {"name": "logits", "datatype": "BYTES", "shape": [1, 2], "data": ["3.000000:1:bee", "3.000000:2:cat"]}


def test_json_has_no_number_for_infinity() -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(SPEC, InferRequest(ROWS, OutputRequest()), np.full((2, 3), np.inf, np.float32))
    assert caught.value.status == 500


@settings(max_examples=400, deadline=None)
@given(content=st.binary(max_size=200), length=st.none() | st.integers(-5, 250).map(str) | st.text(max_size=8))
def test_any_bytes_are_an_answer_or_a_refusal(content: bytes, length: str | None) -> None:
    try:
        request = decode(SPEC, content, length)
    except ProtocolError as error:
        status = error.status
    else:
        status = 400 if request.rows.dtype == np.uint8 and request.rows.shape[1:] == SHAPE else 0
    assert status == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), _JSON, min_size=1),
    other=st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs"]), _JSON, max_size=2),
)
def test_any_json_is_an_answer_or_a_refusal(changes: dict[str, Any], other: dict[str, Any]) -> None:
    try:
        request = decode(SPEC, json.dumps({"inputs": [tensor(**changes)], **other}).encode(), None)
    except ProtocolError as error:
        status = error.status
    else:
        status = 400 if request.rows.shape[1:] == SHAPE else 0
    assert status == 400


def message(**changes: Any) -> Any:
    found = CLASSES["ModelInferRequest"](model_name="stub", id="9")
    found.inputs.add(**{"name": "image", "datatype": "UINT8", "shape": [2, *SHAPE], **changes})
    return found


def test_messages_are_read_raw_and_typed() -> None:
    raw = message()
    raw.raw_input_contents.append(ROWS.tobytes())
    np.testing.assert_array_equal(decode_message(SPEC, raw).rows, ROWS)
    typed = message(contents={"uint_contents": ROWS.ravel().tolist()})
    np.testing.assert_array_equal(decode_message(SPEC, typed).rows, ROWS)
    answer = encode_message(SPEC, decode_message(SPEC, typed), expected(ROWS))
    assert answer.raw_output_contents[0] == expected(ROWS).tobytes()
    assert answer.id == "9"


@pytest.mark.parametrize(
    ("changes", "raw", "text"),
    [
        ({"name": "x"}, [ROWS.tobytes()], "expected image"),
        ({"datatype": "FP32"}, [ROWS.tobytes()], "expected UINT8"),
        ({"shape": [0, *SHAPE]}, [b""], "has shape"),
        ({"shape": [2**62, *SHAPE]}, [ROWS.tobytes()], "has shape"),
        ({"shape": [1] * 100_000}, [ROWS.tobytes()], "not a list of whole numbers"),
        ({}, [ROWS.tobytes()[:-1]], "7 raw bytes, its shape takes 8"),
        ({}, [ROWS.tobytes()] * 2, "2 raw contents"),
        ({}, [], "0 values"),
        ({"contents": {"uint_contents": [256] * 8}}, [], "outside the range"),
        ({"contents": {"uint_contents": [1] * 8}}, [ROWS.tobytes()], "no other contents"),
        ({"contents": {"int_contents": [1] * 8}}, [], "0 values"),
    ],
)
def test_messages_that_are_wrong_are_refused(changes: dict[str, Any], raw: list[bytes], text: str) -> None:
    found = message(**changes)
    found.raw_input_contents.extend(raw)
    with pytest.raises(ProtocolError, match=text):
        decode_message(SPEC, found)
