"""Asking a server of the Open Inference Protocol, here a fake one: the same logits, and every wrong
answer as one line."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stub_server import StubServer, stub_server

from deploy.predict.predictor import opened_here
from deploy.predict.remote import served_at
from export.bundle import open_bundle
from export.errors import DamagedError, NotHereError, SamegraphError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)


@pytest.fixture
def server(finished_run: Path) -> Iterator[StubServer]:
    bundle = open_bundle(finished_run / "bundle")
    with opened_here(bundle) as source, stub_server(bundle.manifest, source) as stub:
        yield stub


@pytest.mark.parametrize("as_json", [False, True])
def test_the_logits_are_the_servers(server: StubServer, as_json: bool) -> None:
    server.as_json = as_json
    source = served_at(server.url, server.facts)
    assert source.facts == {"url": f"{server.url}/v2/models/net"}
    assert np.array_equal(source.logits(PIXELS), server.source.logits(PIXELS))
    assert source.logits(PIXELS).dtype == np.float32


def test_a_model_can_be_named(server: StubServer) -> None:
    server.names = ("net", "other")
    assert served_at(f"{server.url}/v2/models/other/", server.facts).facts["url"].endswith("/v2/models/other")
    assert "/v2/repository/index" not in server.requests
    with pytest.raises(UsageError, match=rf"serves 2 models \(net, other\); name one: --url {server.url}/v2/models/NAME"):
        served_at(server.url, server.facts)
    with pytest.raises(NotHereError, match=r"/v2/models/third answers 404 Not Found \(no model 'third'\)"):
        served_at(f"{server.url}/v2/models/third", server.facts)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "ftp://a/v2"])
def test_what_is_no_address_is_refused(server: StubServer, url: str) -> None:
    with pytest.raises(UsageError, match="is not an address; expected http://HOST:PORT"):
        served_at(url, server.facts)


def test_nobody_there_is_said(server: StubServer) -> None:
    with pytest.raises(NotHereError, match=r"cannot be asked: .*refused; start the server, or check the address"):
        served_at("http://127.0.0.1:9", server.facts)


@pytest.mark.parametrize("change", [{"datatype": "FP32"}, {"shape": [-1, 3, 8, 8]}, {"name": "x"}, {"shape": None}, {"shape": [8]}])
def test_a_server_of_another_model_is_refused_before_it_is_asked(server: StubServer, change: dict[str, object]) -> None:
    entry = {"name": "image", "datatype": "UINT8", "shape": [-1, 1, 8, 8]} | change
    server.answers["/v2/models/net"] = (200, {}, json.dumps({"inputs": [entry], "outputs": []}).encode())
    with pytest.raises(UsageError, match=r"serves another model than this bundle's: its inputs are .*, expected image, UINT8, batch x 1 x 8 x 8"):
        served_at(server.url, server.facts)


HEAD = {"Inference-Header-Content-Length": "2"}


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((503, {"Retry-After": "1"}, b'{"error": "the queue is full"}'), NotHereError, r"answers 503 Service Unavailable \(the queue is full\)"),
        ((400, {}, b"\xff"), UsageError, "answers 400 Bad Request; check"),
        ((500, {}, b'{"error": 3}'), UsageError, "answers 500 Internal Server Error; check"),
        ((200, {}, b"<html>"), DamagedError, "not the protocol's"),
        ((200, {}, b"[" * 100_000), DamagedError, "not the protocol's"),
        ((200, HEAD, b"{}"), DamagedError, "KeyError"),
        ((200, {"Inference-Header-Content-Length": "x"}, b"{}"), DamagedError, "not the protocol's"),
        ((200, {}, b'{"outputs": []}'), DamagedError, "no output 'logits'"),
        ((200, {}, b'{"outputs": 3}'), DamagedError, "not the protocol's"),
        ((200, {}, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": [1]}]}'), DamagedError, "reshape"),
        ((200, {}, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1000000, 1000000], "data": [1]}]}'), DamagedError, "of shape"),
        ((200, {}, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10], "data": [1]}]}'), DamagedError, "of shape"),
        ((200, {}, b'{"outputs": [{"name": "logits", "datatype": "INT8", "shape": [1, 10], "data": [1]}]}'), DamagedError, "INT8 of shape"),
    ],
)
def test_a_wrong_answer_is_one_line(server: StubServer, answer: tuple[int, dict[str, str], bytes], error: type[SamegraphError], words: str) -> None:
    source = served_at(server.url, server.facts)
    server.answers["/v2/models/net/infer"] = answer
    with pytest.raises(error, match=words) as caught:
        source.logits(PIXELS)
    assert "\n" not in str(caught.value)
