"""What a one-image request costs the server itself: HTTP, batcher, metrics, gRPC, and no model.

    python -m benchmarks.serving.cost [--rounds 7] [--seconds 3]

The server runs with a model that only copies numbers. Beside it, interleaved: a bare ASGI
application under uvicorn that reads the body and answers as many bytes. Writes
results/serving_cost.json.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.environment import write_result
from benchmarks.serving.servers import Running, measured, raw_request
from deploy.compare.bits import Array
from deploy.runners.runner import Runner, TensorSpec
from deploy.server.application import Application
from deploy.server.counts import Counts
from deploy.server.grpc import GrpcServer
from deploy.server.http import HttpOptions, HttpServer
from deploy.server.messages import CLASSES
from deploy.server.model import LoadedModel
from deploy.server.protocol import ModelSpec, TensorShape
from deploy.server.service import Service, ServiceOptions

SHAPE, CLASSES_OUT = (3, 32, 32), 10
CONNECTIONS = (1, 16)


class _Copy(Runner):
    """A model that takes no time."""

    name = "copy"
    inputs = (TensorSpec("image", "uint8", (None, *SHAPE)),)
    outputs = (TensorSpec("logits", "float32", (None, CLASSES_OUT)),)

    @property
    def facts(self) -> Mapping[str, object]:
        return {}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": batch["image"][:, 0, 0, :CLASSES_OUT].astype(np.float32)}

    def close(self) -> None:
        return


def _model() -> LoadedModel:
    spec = ModelSpec(
        "copy", TensorShape("image", "uint8", SHAPE), TensorShape("logits", "float32", (CLASSES_OUT,)), tuple("0123456789"), 64, "onnx_copy"
    )
    return LoadedModel(
        spec=spec, form="exact", runtime="copy", batching="exact", runners=[_Copy()], verified=True, why="", sha256="0" * 64, labels=spec.labels
    )


def _ours(listening: socket.socket, grpc_port: int) -> None:
    async def main() -> None:
        service = Service(_model(), ServiceOptions(), Counts(), "0")
        server = HttpServer(Application(service), HttpOptions(), service.counts)
        await server.start([listening])
        if grpc_port:
            await GrpcServer(service).start(f"127.0.0.1:{grpc_port}")
        service.start()
        await asyncio.Event().wait()

    uvloop.run(main())


def _bare(listening: socket.socket, grpc_port: int) -> None:
    import uvicorn

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        body = b"x" * 280
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"280")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(application, http="httptools", loop="uvloop", ws="none", lifespan="off", log_config=None, access_log=False)
    uvicorn.Server(config).run([listening])


class _Child:
    """A server in a forked process."""

    def __init__(self, target: Callable[[socket.socket, int], None], *, grpc_port: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(1024)
        self.socket.setblocking(False)
        self.port, self.grpc_port = self.socket.getsockname()[1], grpc_port
        self._process = multiprocessing.get_context("fork").Process(target=target, args=(self.socket, grpc_port), daemon=True)

    def __enter__(self) -> Running:
        self._process.start()
        self.socket.close()
        time.sleep(1.0)
        assert self._process.pid is not None
        return Running(_Pid(self._process.pid), f"http://127.0.0.1:{self.port}", f"127.0.0.1:{self.grpc_port}", "copy")  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


class _Pid:
    def __init__(self, pid: int) -> None:
        self.pid = pid


def _grpc_cost(running: Running, rows: Array, seconds: float) -> dict[str, float]:
    """Ask over gRPC from a child, one call after the other on several channels."""
    request = CLASSES["ModelInferRequest"](model_name="copy")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, *SHAPE])
    request.raw_input_contents.append(rows.tobytes())
    payload = request.SerializeToString()
    queue = multiprocessing.get_context("spawn").Queue()
    before = running.cpu()
    child = multiprocessing.get_context("spawn").Process(target=_grpc_client, args=(running.grpc, payload, seconds, queue))
    child.start()
    number, median = queue.get()
    child.join()
    return {"server_cpu_us": round(1e6 * (running.cpu() - before) / number, 2), "median_ms": median, "per_second": round(number / seconds, 1)}


def _grpc_client(address: str, payload: bytes, seconds: float, queue: Any) -> None:
    async def main() -> tuple[int, float]:
        times: list[float] = []

        async def ask() -> None:
            async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                until = time.perf_counter() + seconds
                while (now := time.perf_counter()) < until:
                    await call(payload)
                    times.append(time.perf_counter() - now)

        await asyncio.gather(*(ask() for _ in range(CONNECTIONS[-1])))
        return len(times), round(1e3 * statistics.median(times), 4)

    queue.put(asyncio.run(main()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    rows = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    request = [raw_request("copy", rows)]
    answer = [rows[0, 0, 0, :CLASSES_OUT].astype(np.float32).tobytes()]
    found: dict[str, list[float]] = {}
    details: dict[str, list[dict[str, Any]]] = {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        grpc_port = free.getsockname()[1]
    with _Child(_ours, grpc_port=grpc_port) as ours, _Child(_bare) as bare:
        for _ in range(options.rounds):
            for connections in CONNECTIONS:
                for name, running, answers in (("ours", ours, answer), ("bare ASGI", bare, None)):
                    one = measured(running, request, answers, connections=connections, seconds=options.seconds)
                    if not one["good"] or one["wrong"] or one["broken"]:
                        raise SystemExit(f"the measurement failed: {one}")
                    found.setdefault(f"{name}, {connections} connections", []).append(one["server_cpu_us"])
                    details.setdefault(f"{name}, {connections} connections", []).append(one)
            with suppress(KeyError):
                one = _grpc_cost(ours, rows, options.seconds)
                found.setdefault("ours, gRPC, 16 channels", []).append(one["server_cpu_us"])
    figures = {
        name: {"cpu_us": {"median": statistics.median(values), "least": min(values), "most": max(values)}, "rounds": len(values)}
        for name, values in found.items()
    }
    print(write_result("serving_cost", {"bytes_of_a_request": rows.nbytes, "figures": figures, "load_at_end": os.getloadavg()[0]}))
    for name, figure in figures.items():
        print(name, figure["cpu_us"])


if __name__ == "__main__":
    main()
