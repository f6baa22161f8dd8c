"""pipeline serve beside what a user would take instead: the same ONNX file, client and cores.

    python -m benchmarks.serving.peers BUNDLE [--only NAME ...] [--rounds 3] [--seconds 5]

Makes an environment of its own for each peer (LitServe, BentoML, MLServer, Ray Serve), writes the
smallest server that its documentation shows, with dynamic batching where it has any, and asks all
in turn for one image at a time. Traffic goes to loopback only. Writes results/serving_peers.json.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import write_result
from benchmarks.serving.servers import Running, measured, raw_request, serving
from deploy.compare.bits import Array
from deploy.compare.validated import validated_outputs
from export.bundle import EXACT_MODEL, Bundle, open_bundle

ONNXRUNTIME = "onnxruntime"
SESSION = """
import numpy as np, onnxruntime, os
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
SHAPE = tuple(session.get_inputs()[0].shape[1:])
def run(rows):
    return session.run(None, {session.get_inputs()[0].name: rows})[0]
"""


@dataclass(frozen=True)
class Peer:
    """Another server: what to install, its code, how it is started and asked."""

    packages: tuple[str, ...]
    code: str
    command: tuple[str, ...]
    """{python}, {folder} and {port} are replaced."""
    path: str
    files: tuple[tuple[str, str], ...] = ()
    json_head: bool = False
    """Whether it takes the Open Inference Protocol with binary data behind a JSON head."""
    note: str = ""


LITSERVE = (
    SESSION
    + """
import litserve
from fastapi import Request, Response
class Api(litserve.LitAPI):
    def setup(self, device): pass
    async def decode_request(self, request: Request): return np.frombuffer(await request.body(), np.uint8).reshape(SHAPE)
    def batch(self, inputs): return np.stack(inputs)
    def predict(self, rows): return run(rows)
    def unbatch(self, output): return list(output)
    def encode_response(self, output): return Response(output.tobytes(), media_type="application/octet-stream")
if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(port=int(os.environ["PORT"]), host="127.0.0.1", log_level="error", generate_client_file=False)
"""
)
BENTOML = (
    SESSION
    + """
import bentoml, typing
@bentoml.service(traffic={"timeout": 30})
class Served:
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000, route="/infer")
    def infer(self, rows: np.ndarray) -> np.ndarray:
        return run(rows.astype(np.uint8).reshape(-1, *SHAPE))
"""
)
MLSERVER = (
    SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
class Served(MLModel):
    async def load(self): return True
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", run(rows))])
"""
)
RAY = (
    SESSION.replace("session = ", "session = None\ndef opened():\n    return ").replace("SHAPE = tuple(session.get_inputs()[0].shape[1:])\n", "")
    + """
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
class Served:
    def __init__(self): self.session = opened()
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def run(self, rows): return list(self.session.run(None, {self.session.get_inputs()[0].name: np.stack(rows)})[0])
    async def __call__(self, request: Request):
        shape = self.session.get_inputs()[0].shape[1:]
        return Response((await self.run(np.frombuffer(await request.body(), np.uint8).reshape(shape))).tobytes())
app = Served.bind()
"""
)
RAY_MAIN = """
import os, time, ray
from ray import serve
import served
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"MODEL": os.environ["MODEL"]}})
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
serve.run(served.app)
while True: time.sleep(1)
"""
PEERS = {
    "LitServe": Peer(("litserve", ONNXRUNTIME), LITSERVE, ("{python}", "{folder}/served.py"), "/predict"),
    "BentoML": Peer(
        ("bentoml", ONNXRUNTIME),
        BENTOML,
        ("{python}", "-m", "bentoml", "serve", "served:Served", "--port", "{port}", "--host", "127.0.0.1", "--working-dir", "{folder}"),
        "/infer",
        note="JSON, since its batched endpoint takes arrays in no other form over HTTP",
    ),
    "MLServer": Peer(
        ("mlserver==1.7.1", ONNXRUNTIME),
        MLSERVER,
        ("{python}", "-m", "mlserver.cli.main", "start", "{folder}"),
        "/v2/models/served/infer",
        files=(
            ("model-settings.json", json.dumps({"name": "served", "implementation": "served.Served", "max_batch_size": 64, "max_batch_time": 0.001})),
        ),
        json_head=True,
    ),
    "Ray Serve": Peer(("ray[serve]", ONNXRUNTIME), RAY, ("{python}", "{folder}/main.py"), "/", files=(("main.py", RAY_MAIN),)),
}


def environment_for(name: str, peer: Peer, root: Path) -> Path:
    """Return the Python of an environment that has the peer."""
    place = root / name.replace(" ", "-")
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages], check=True, stderr=subprocess.DEVNULL
        )
        (place / "installed").touch()
    return python


def _post(path: str, body: bytes, content_type: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def request_of(peer: Peer, image: Array) -> bytes:
    if peer.json_head:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "parameters": {"binary_data_size": image.nbytes}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return _post(peer.path, head + image.tobytes(), "application/octet-stream", f"Inference-Header-Content-Length: {len(head)}")
    if peer.note:
        return _post(peer.path, json.dumps({"rows": image[None].tolist()}).encode(), "application/json")
    return _post(peer.path, image.tobytes(), "application/octet-stream")


@contextmanager
def running(name: str, peer: Peer, model: Path, root: Path) -> Iterator[Running]:
    """Start a peer and wait until it answers."""
    python = environment_for(name, peer, root)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "served.py").write_text(peer.code, encoding="utf-8")
        for file, content in peer.files:
            (place / file).write_text(content, encoding="utf-8")
        port = _free_port()
        ports = {"MLSERVER_HTTP_PORT": port, "MLSERVER_GRPC_PORT": _free_port(), "MLSERVER_METRICS_PORT": _free_port()}
        variables = {**os.environ, "MODEL": str(model), "PORT": str(port), "MLSERVER_HOST": "127.0.0.1", "PYTHONPATH": folder}
        variables |= {key: str(value) for key, value in ports.items()} | {
            "BENTOML_DO_NOT_TRACK": "1",
            "MLSERVER_PARALLEL_WORKERS": "1",
            "MLSERVER_DEBUG": "false",
        }
        variables["PATH"] = f"{python.parent}:{variables['PATH']}"
        command = [part.format(python=python, folder=folder, port=port) for part in peer.command]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(command, env=variables, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            _await(port, process, place / "log")
            yield Running(process, f"http://127.0.0.1:{port}", None, name)  # type: ignore[arg-type]  # its output is bytes
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if "ray" in " ".join(peer.packages):
                subprocess.run([python.parent / "ray", "stop", "--force"], capture_output=True, check=False)


def _free_port() -> int:
    import socket

    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def _await(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
            time.sleep(3.0)
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"a peer did not start: {log.read_text(errors='replace')[-2000:]}")


def _measure(name: str, server: Running, requests: list[bytes], answers: list[bytes] | None, options: argparse.Namespace) -> dict[str, Any]:
    found = measured(server, requests, answers, connections=options.connections, seconds=options.seconds, warm_up=1.0)
    if found["wrong"] or found["broken"] or not found["good"]:
        print(f"{name}: {found}", file=sys.stderr)
    print(name, {key: found[key] for key in ("per_second", "median_ms", "p99_ms", "server_cpu_us", "statuses")}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "samegraph-peers")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(bundle.read(EXACT_MODEL))
        for _ in range(options.rounds):
            for name in ["samegraph", *(options.only or PEERS)]:
                found.setdefault(name, []).append(_one(name, bundle, model, options))
    figures = {name: _summary(rounds) for name, rounds in found.items()}
    best = max((figure["per_second"]["median"] for name, figure in figures.items() if name != "samegraph"), default=0.0)
    ratio = figures["samegraph"]["per_second"]["median"] / best if best else None
    result = {"network": bundle.manifest.network, "connections": options.connections, "figures": figures, "ratio_to_the_best_peer": ratio}
    notes = {name: peer.note for name, peer in PEERS.items() if peer.note}
    print(write_result("serving_peers", {**result, "packages": {name: peer.packages for name, peer in PEERS.items()}, "notes": notes}))
    print("ratio to the best peer:", ratio)


def _one(name: str, bundle: Bundle, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    outputs = validated_outputs(bundle)
    assert outputs.exact is not None
    answers = [row.tobytes() for row in outputs.exact]
    if name == "samegraph":
        with serving(options.bundle, "--runtime", "onnxruntime-cpu", "--max-queue-size", "1000") as server:
            requests = [raw_request(server.name, image[None]) for image in outputs.images]
            return _measure(name, server, requests, answers, options)
    peer = PEERS[name]
    with running(name, peer, model, options.environments) as server:
        requests = [request_of(peer, np.ascontiguousarray(image)) for image in outputs.images]
        return _measure(name, server, requests, None if peer.note else answers, options)


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("per_second", "median_ms", "p99_ms", "server_cpu_us", "server_memory", "client_cpu_seconds")
    values = {key: [one[key] for one in rounds if one[key] is not None] for key in keys}
    return {
        **{key: {"median": statistics.median(each), "least": min(each), "most": max(each)} if each else None for key, each in values.items()},
        "wrong": sum(one["wrong"] for one in rounds),
        "broken": sum(one["broken"] for one in rounds),
    }


if __name__ == "__main__":
    main()
