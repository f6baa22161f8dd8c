"""A fake server of the Open Inference Protocol: it knows one bundle, and can answer wrongly."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from deploy.predict.predictor import LogitSource
from export.bundle import Facts

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass
class StubServer:
    """What the fake serves, and what was sent to it."""

    facts: Facts
    source: LogitSource
    names: tuple[str, ...] = ("net",)
    as_json: bool = False
    """Whether outputs come as JSON, although binary data were requested."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """By path: an answer to give instead of the right one."""
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str, headers: Callable[[str], str | None], body: bytes) -> Answer:
        self.requests.append(path)
        if path in self.answers:
            return self.answers[path]
        if path == "/v2/repository/index":
            return _told([{"name": name} for name in self.names])
        name = path.removeprefix("/v2/models/")
        if name in self.names:
            return _told({"name": name, "inputs": [self._end("input", "UINT8")], "outputs": [self._end("output", "FP32")]})
        if name.endswith("/infer"):
            return self._inferred(int(headers("Inference-Header-Content-Length") or 0), body)
        return _told({"error": f"no model {name!r}"}, 404)

    def _end(self, which: str, kind: str) -> dict[str, object]:
        entry = self.facts.input if which == "input" else self.facts.output
        return {"name": entry.name, "datatype": kind, "shape": [-1, *entry.shape[1:]]}

    def _inferred(self, length: int, body: bytes) -> Answer:
        (given,) = json.loads(body[:length])["inputs"]
        assert given["parameters"]["binary_data_size"] == len(body) - length
        pixels = np.frombuffer(body[length:], np.uint8).reshape(given["shape"])
        logits = self.source.logits(pixels)
        end: dict[str, object] = {"name": self.facts.output.name, "datatype": "FP32", "shape": list(logits.shape)}
        first = {"name": "another", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        if self.as_json:
            return _told({"outputs": [{**end, "data": logits.flatten().tolist()}]})
        head = json.dumps({"outputs": [first, {**end, "parameters": {"binary_data_size": logits.nbytes}}]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return 200, headers, head + bytes(4) + logits.astype("<f4").tobytes()


def _told(content: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def stub_server(facts: Facts, source: LogitSource) -> Iterator[StubServer]:
    """Yield the fake while it listens on a free port of this machine."""
    stub = StubServer(facts, source)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._give(b"")

        def do_POST(self) -> None:
            self._give(self.rfile.read(int(self.headers["Content-Length"])))

        def _give(self, body: bytes) -> None:
            status, headers, content = stub.answer(self.path, self.headers.get, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the name is http.server's
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
