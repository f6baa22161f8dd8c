"""Ray Serve with two replicas: the validated bits from both, also after one was killed."""

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.compare.bits import Array
from deploy.compare.validated import ValidatedOutputs
from export.errors import UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of Ray and what it brings


@pytest.fixture(scope="module")
def ray_server(finished_run: Path) -> Iterator[str]:
    import ray
    from ray import serve

    from deploy.server.ray_serve import app

    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    root = str(Path(__file__).parents[3])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = {"bundle": str(finished_run / "bundle"), "runtime": "onnxruntime-cpu", "replicas": "2", "cpus": "0.5"}
    serve.run(app(arguments))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def ask(url: str, rows: Array) -> bytes:
    request = urllib.request.Request(f"{url}/v2/models/small/infer", rows.tobytes(), {"Inference-Header-Content-Length": "0"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
        return body[int(answer.headers["Inference-Header-Content-Length"]) :]


def test_all_replicas_give_the_validated_bits(ray_server: str, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    with urllib.request.urlopen(f"{ray_server}/v2/health/ready", timeout=30) as answer:
        assert json.loads(answer.read())["ready"] is True
    draw = np.random.default_rng(0)
    for _ in range(60):
        rows = draw.integers(0, len(validated.images), draw.integers(1, 9))
        assert ask(ray_server, validated.images[rows]) == validated.exact[rows].tobytes()


def test_a_replica_that_is_killed_is_replaced_and_no_answer_is_wrong(ray_server: str, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    born = processes_of_replicas()
    assert len(born) == 2
    os.kill(born[0], signal.SIGKILL)
    good = broken = 0
    until = time.monotonic() + 60
    while time.monotonic() < until and (good < 200 or len(set(processes_of_replicas()) - set(born)) < 1):
        row = good % len(validated.images)
        try:
            assert ask(ray_server, validated.images[row : row + 1]) == validated.exact[row : row + 1].tobytes()
            good += 1
        except (urllib.error.URLError, ConnectionError):
            broken += 1
    assert good >= 200
    assert len(processes_of_replicas()) == 2


def processes_of_replicas() -> list[int]:
    """The processes of Ray whose title names our deployment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                title = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"ServeReplica:default:samegraph" in title:
                found.append(int(process.name))
    return sorted(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "bundle is missing"), ({"bundle": "x", "speed": "1"}, "speed is not an argument"), ({"bundle": "x", "replicas": "two"}, "wrong type")],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    from deploy.server.ray_serve import app

    with pytest.raises(UsageError, match=message):
        app(arguments)
