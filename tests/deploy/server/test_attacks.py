"""Clients that mean harm, each with the exact answer, over a real socket. The server then still
answers everybody else with the right bits."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from server_process import ServerProcess, serving

from deploy.compare.validated import ValidatedOutputs
from deploy.server.messages import CLASSES

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def still_right(server: ServerProcess, validated: ValidatedOutputs) -> Iterator[None]:
    """After each attack: the process is the same one, ready, and its bits are right."""
    yield
    assert server.process.poll() is None
    assert server.status("/v2/health/ready") == 200
    assert validated.exact is not None
    status, _, body = ask(server, post(server, validated.images[:3].tobytes(), "Inference-Header-Content-Length: 0"))
    assert status == 200
    assert body.endswith(validated.exact[:3].tobytes())


def post(server: ServerProcess, body: bytes, *headers: str, path: str | None = None, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {path or f'/v2/models/{server.name}/infer'} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1")


def ask(server: ServerProcess, *pieces: bytes, pause: float = 0) -> Answer:
    """Send pieces over one connection, and read one answer."""
    with closing(server.connection()) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        return read(connection)


def read(connection: socket.socket, before: bytes = b"") -> Answer:
    received = before
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {received!r}")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers["content-length"])
    while len(body) < length:
        piece = connection.recv(65536)
        assert piece, "closed in the middle of an answer"
        body += piece
    return int(first.split()[1]), headers, body


def error_of(answer: Answer) -> str:
    content = json.loads(answer[2])
    assert list(content) == ["error"]
    assert not any(word in content["error"] for word in ("Traceback", "site-packages", ".py", "0x", "line ")), content
    return str(content["error"])


def row(validated: ValidatedOutputs) -> bytes:
    return validated.images[0].tobytes()


RAW = "Inference-Header-Content-Length: 0"


def test_a_body_in_a_million_pieces(server: ServerProcess) -> None:
    """Each byte a chunk of its own; the body is far too large for the model, and refused early."""
    with closing(server.connection()) as connection:
        connection.sendall(post(server, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        answer = None
        try:
            for _ in range(200):
                connection.sendall(b"1\r\nx\r\n" * 5000)
        except OSError:  # it may close before all is sent
            pass
        else:
            connection.sendall(b"0\r\n\r\n")
        answer = read(connection)
    assert answer[0] in (400, 413)
    assert "not valid JSON" in error_of(answer) or "more than the" in error_of(answer)


def test_small_chunks_of_a_good_request_are_a_good_request(server: ServerProcess, validated: ValidatedOutputs) -> None:
    head = post(server, b"", RAW).replace(b"Content-Length: 0\r\nInf", b"Transfer-Encoding: chunked\r\nInf")
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in row(validated)) + b"0\r\n\r\n"
    assert ask(server, head, chunks)[0] == 200


@pytest.mark.parametrize(
    ("request_text", "status", "message"),
    [
        ("huge", 413, "expected at most"),
        ("encoding", 415, "Content-Encoding"),
        ("unknown model", 404, "no model"),
        ("unknown version", 404, "no version"),
        ("traversal", 404, "no model"),
        ("encoded traversal", 404, "no model"),
        ("dots", 404, "no such path"),
        ("long name", 404, "no model"),
        ("get infer", 405, "expected POST"),
        ("delete model", 405, "expected GET"),
        ("control", 404, "no such path"),
        ("shared memory", 404, "no such path"),
        ("connect", 404, "no such path"),
    ],
)
def test_what_is_asked_wrongly_is_refused(server: ServerProcess, request_text: str, status: int, message: str) -> None:
    requests = {
        "huge": post(server, b"", length=10**15),
        "encoding": post(server, b"x", "Content-Encoding: gzip"),
        "unknown model": get("/v2/models/another"),
        "unknown version": get(f"/v2/models/{server.name}/versions/2"),
        "traversal": get("/v2/models/..%2f..%2fetc"),
        "encoded traversal": get("/v2/models/%2e%2e"),
        "dots": get("/v2/models/../../etc/passwd"),
        "long name": get("/v2/models/" + "x" * 8000),
        "get infer": get(f"/v2/models/{server.name}/infer"),
        "delete model": get(f"/v2/models/{server.name}").replace(b"GET", b"DELETE"),
        "control": post(server, b"{}", path=f"/v2/repository/models/{server.name}/unload"),
        "shared memory": get("/v2/systemsharedmemory/status"),
        "connect": get("/x").replace(b"GET", b"PATCH"),
    }
    answer = ask(server, requests[request_text])
    assert answer[0] == status
    assert message in error_of(answer)


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET  /v2 HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1 1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n",
    ],
)
def test_what_two_parsers_may_read_differently_is_refused_and_the_connection_closed(server: ServerProcess, text: bytes) -> None:
    with closing(server.connection()) as connection:
        connection.sendall(text)
        status, headers, _ = read(connection)
        assert (status, headers["connection"]) == (400, "close")
        assert connection.recv(1) == b""


def test_headers_without_end(server: ServerProcess) -> None:
    with closing(server.connection()) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\n")
        try:
            for number in range(4000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:
            pass
        assert b" 431 " in connection.recv(100)


def test_requests_sent_ahead_are_limited(server: ServerProcess) -> None:
    with closing(server.connection()) as connection:
        connection.sendall(get("/v2/health/live") * 10)
        received = b""
        while received.count(b'"live": true') < 10:
            received += connection.recv(65536)
    with closing(server.connection()) as connection:
        connection.sendall(get("/metrics") * 2000)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        assert b" 429 " in received or received.count(b" 200 OK") < 2000


def test_a_client_that_leaves_at_any_byte(server: ServerProcess, validated: ValidatedOutputs) -> None:
    text = post(server, row(validated), RAW)
    for length in range(0, len(text) + 1, 3):
        with closing(server.connection()) as connection:
            connection.sendall(text[:length])
    for length in (20, len(text) - 1, len(text)):
        connection = server.connection()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset instead of an orderly end
        connection.sendall(text[:length])
        connection.close()


def test_expect_continue(server: ServerProcess, validated: ValidatedOutputs) -> None:
    with closing(server.connection()) as connection:
        connection.sendall(post(server, b"", RAW, "Expect: 100-continue", length=len(row(validated))))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(row(validated))
        assert read(connection)[0] == 200


def test_slow_clients_do_not_keep_others_waiting(server: ServerProcess, validated: ValidatedOutputs) -> None:
    """200 connections that never end their headers or bodies."""
    slow = [server.connection() for _ in range(200)]
    try:
        for index, connection in enumerate(slow):
            connection.sendall(b"POST /v2" if index % 2 else post(server, b"ab", RAW, length=64))
        started = time.monotonic()
        assert ask(server, post(server, row(validated), RAW))[0] == 200
        assert time.monotonic() - started < 5
    finally:
        for connection in slow:
            connection.close()


def test_grpc_messages_are_limited_and_bad_ones_refused(server: ServerProcess, validated: ValidatedOutputs) -> None:
    def call(payload: bytes) -> grpc.StatusCode:
        with grpc.insecure_channel(str(server.grpc), options=[("grpc.max_send_message_length", -1)]) as channel:
            method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                method(payload, timeout=20)
            assert "Traceback" not in caught.value.details()
            return caught.value.code()

    request = CLASSES["ModelInferRequest"](model_name=server.name)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 8, 8])
    whole = request.SerializeToString()
    assert call(b"\xff" * 40) in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    assert call(whole) == grpc.StatusCode.INVALID_ARGUMENT
    request.raw_input_contents.append(b"x" * 2**21)
    assert call(request.SerializeToString()) in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    draw = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(whole)
        for place in draw.integers(0, len(broken), 3):
            broken[place] = int(draw.integers(0, 256))
        call(bytes(broken))


def test_many_at_once_from_many_connections(server: ServerProcess, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    right = validated.exact[:1].tobytes()
    wrong = []

    def flood() -> None:
        with closing(server.connection()) as connection:
            for _ in range(50):
                connection.sendall(post(server, row(validated), RAW))
                status, _, body = read(connection)
                if status != 200 or not body.endswith(right):
                    wrong.append(status)

    threads = [threading.Thread(target=flood) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_full_queue_is_said_at_once_and_the_connection_stays(finished_run: Path, tmp_path: Path) -> None:
    """One request waits, and the others are refused, before their bodies and after."""
    options = ("--runtime", "onnxruntime-cpu", "--max-queue-size", "1", "--max-queue-delay-microseconds", "1500000", "--no-grpc")
    with serving(finished_run / "bundle", tmp_path, *options) as server:
        image = bytes(64)
        with closing(server.connection()) as waiting, closing(server.connection()) as refused:
            waiting.sendall(post(server, image, RAW))
            time.sleep(0.3)
            for _ in range(3):
                text = post(server, image, RAW)
                refused.sendall(text[:-10])
                time.sleep(0.05)
                refused.sendall(text[-10:])
                status, headers, body = read(refused)
                assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
                assert "the queue is full: 1 requests wait" in json.loads(body)["error"]
            refused.sendall(
                post(server, image, RAW)
                .replace(b"Content-Length: 64", b"Transfer-Encoding: chunked")
                .replace(image, b"40\r\n" + image + b"\r\n0\r\n\r\n")
            )
            assert read(refused)[0] == 503, "the ordinary way gives the same answer"
            assert read(waiting)[0] == 200
            refused.sendall(post(server, image, RAW))
            assert read(refused)[0] == 200
        assert server.get("/v2/models/stats")["model_stats"][0]["inference_stats"]["fail"]["count"] == 4
