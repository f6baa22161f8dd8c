"""A server from start to end: what it refuses, what it says, what becomes of requests when it
stops, dies or changes its bundle."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from bundles import relist
from server_process import ServerProcess, command, environment, refusal, serving

from deploy.compare.bits import Array
from deploy.compare.validated import ValidatedOutputs
from export.bundle import MANIFEST, OUTPUTS, VERIFICATION, open_bundle
from export.files import sha256_of

ORT = ("--runtime", "onnxruntime-cpu")


def with_other_outputs(bundle: Path) -> None:
    """Change the validated outputs, as a machine with other kernels would see them."""
    tensors = safetensors.numpy.load((bundle / OUTPUTS).read_bytes())
    tensors["exact"][0, 0] = np.nextafter(tensors["exact"][0, 0], np.float32(np.inf))
    tensors["float64"] += 1e-2
    tensors["float32"] += np.float32(1e-2)
    (bundle / OUTPUTS).write_bytes(safetensors.numpy.save(tensors))
    relist(bundle)


def with_a_failed_verdict(bundle: Path) -> None:
    content = json.loads((bundle / VERIFICATION).read_bytes())
    content["verdict"], content["links"][0]["status"] = "fail", "failed"
    (bundle / VERIFICATION).write_text(json.dumps(content), encoding="utf-8")
    (bundle / "report.html").unlink()
    relist(bundle)


@pytest.mark.parametrize(
    ("damage", "options", "code", "message"),
    [
        (with_other_outputs, (), 3, "does not give the validated outputs here: 1 of"),
        (with_other_outputs, ("--form", "float32"), 3, "the error against float64 is"),
        (with_a_failed_verdict, (), 5, "says 'fail', expected 'pass'"),
        (lambda bundle: (bundle / "model.exact.onnx").write_bytes(b"x"), (), 5, "the manifest says"),
        (lambda bundle: (bundle / VERIFICATION).unlink(), (), 5, "not there"),
        (lambda bundle: None, ("--runtime", "torch"), 2, "cannot serve; choose auto or one of"),
        (lambda bundle: None, ("--runtime", "tensorrt"), 4, "the bundle has no exact engine"),
        (lambda bundle: None, ("--runtime", "onnxruntime-cuda"), 4, "it needs an NVIDIA GPU"),
        (lambda bundle: None, ("--recheck", "0.1", "--batching", "fast"), 2, "which --batching fast does not keep"),
        (lambda bundle: None, ("--host", "256.0.0.1"), 2, "cannot listen on 256.0.0.1"),
        (lambda bundle: None, ("--tls-key", __file__), 2, "go together"),
        (lambda bundle: None, ("--token-file", os.devnull), 2, "is a file|does not hold one token|not a file|directory|is not"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(
    bundle: Path, damage: Callable[[Path], object], options: tuple[str, ...], code: int, message: str
) -> None:
    damage(bundle)
    if "--runtime" not in options:
        options += ORT
    found, line = refusal(bundle, *options)
    assert found == code, line
    assert any(part in line for part in message.split("|")), line


@pytest.mark.parametrize("damage", [with_other_outputs, with_a_failed_verdict])
def test_unverified_is_said_everywhere(bundle: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(bundle)
    with serving(bundle, tmp_path, *ORT, "--unverified", "--metrics-compat", "triton") as server:
        assert server.get(f"/v2/models/{server.name}")["parameters"]["verified"] is False
        assert "UNVERIFIED" in server.log.read_text(encoding="utf-8")
        with urllib.request.urlopen(infer_request(server, np.zeros((1, 1, 8, 8), np.uint8)), timeout=20) as answer:
            assert answer.headers["samegraph-bits"] == "exact, unverified"
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        assert "samegraph_verified 0.0" in text
        assert f'nv_inference_request_success{{model="{server.name}",version="1"}} 1.0' in text
        assert 'samegraph_requests_total{outcome="ok",protocol="http"} 1.0' in text
        assert 'samegraph_request_seconds_bucket{le="+Inf"} 1.0' in text


def infer_request(server: ServerProcess, rows: Array) -> urllib.request.Request:
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    return urllib.request.Request(f"{server.url}/v2/models/{server.name}/infer", rows.tobytes(), headers)


class Load:
    """Clients that ask without end and compare each answer."""

    def __init__(self, server: ServerProcess, validated: ValidatedOutputs, clients: int = 6) -> None:
        assert validated.exact is not None
        self._server, self._images, self._expected = server, validated.images, validated.exact
        self.good, self.refused, self.broken, self.wrong = 0, 0, 0, 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(clients)]

    def _ask(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        while not self._stop.is_set():
            rows = draw.integers(0, len(self._images), draw.integers(1, 5))
            try:
                with urllib.request.urlopen(infer_request(self._server, self._images[rows]), timeout=20) as answer:
                    head, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
                if body[head:] == self._expected[rows].tobytes():
                    self.good += 1
                else:
                    self.wrong += 1
            except urllib.error.HTTPError as error:
                self.refused += 1
                error.close()
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    self.broken += 1
                time.sleep(0.01)
            except (OSError, http.client.HTTPException):
                self.broken += 1

    def until(self, number: int) -> None:
        end = time.monotonic() + 30
        while self.good < number:
            assert time.monotonic() < end, vars(self)
            time.sleep(0.01)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_sigterm_under_load_answers_every_accepted_request(finished_run: Path, validated: ValidatedOutputs, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, *ORT) as server, Load(server, validated) as load:
        load.until(50)
        assert server.stop() == 0
    assert (load.wrong, load.broken) == (0, 0), vars(load)
    assert [line["message"] for line in server.said()][-2:] == ["draining", "stopped"]


def test_a_second_signal_ends_at_once(finished_run: Path, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, *ORT, "--drain-delay", "60") as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert server.status("/v2/health/ready") == 503
        assert server.status("/v2/health/live") == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1


@contextmanager
def exchanged(bundle: Path, other: Path) -> Iterator[None]:
    """Put another bundle in the place of one, as a publication does."""
    aside = bundle.with_name("aside")
    bundle.rename(aside)
    other.rename(bundle)
    yield
    shutil.rmtree(aside)


def test_a_hot_change_loses_no_request_and_a_damaged_bundle_is_not_taken(bundle: Path, validated: ValidatedOutputs, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copytree(bundle, good)
    (good / "README.md").write_text("the same, but for this card\n", encoding="utf-8")
    relist(good)
    shutil.copytree(bundle, bad)
    with_other_outputs(bad)
    digest = sha256_of((good / MANIFEST).read_bytes())
    with serving(bundle, tmp_path, *ORT, "--watch") as server, Load(server, validated, 3) as load:
        load.until(20)
        with exchanged(bundle, good):
            server.wait_for("changed to a new bundle")
        assert server.get(f"/v2/models/{server.name}")["parameters"]["bundle_sha256"] == digest
        load.until(load.good + 20)
        with exchanged(bundle, bad):
            assert "validated outputs" in server.wait_for("was not taken")["reason"]
        load.until(load.good + 20)
        assert server.get(f"/v2/models/{server.name}")["parameters"]["bundle_sha256"] == digest
        assert server.status("/v2/health/ready") == 200
    assert (load.wrong, load.broken, load.refused) == (0, 0, 0), vars(load)


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(each) for each in path.read_text(encoding="ascii").split()]


def test_a_process_that_is_killed_is_started_again_and_the_others_answer(finished_run: Path, validated: ValidatedOutputs, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, *ORT, "--processes", "2", "--threads", "1") as server, Load(server, validated) as load:
        load.until(50)
        first = children(server.process.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        server.wait_for("a process died")
        load.until(load.good + 50)
        until = time.monotonic() + 20
        while len([line for line in server.said() if line["message"] == "ready"]) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert server.get("/v2/models/stats")["model_stats"][0]["inference_count"] >= load.good
        assert server.stop() == 0
    assert load.wrong == 0
    assert load.broken <= 6, "only requests of the process that was killed"


def test_children_end_with_their_parent(finished_run: Path, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, *ORT, "--processes", "2", "--threads", "1", "--no-grpc") as server:
        born = children(server.process.pid)
        server.process.kill()
        server.process.wait(10)
        until = time.monotonic() + 20
        while any(Path(f"/proc/{each}").exists() and "Z" not in Path(f"/proc/{each}/stat").read_text(encoding="ascii").split()[2] for each in born):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_full_disk_under_the_log_stops_nothing(finished_run: Path, validated: ValidatedOutputs, tmp_path: Path) -> None:
    """/dev/full refuses each write, as a full disk does."""
    port = free_port()
    options = [*ORT, "--port", str(port), "--no-grpc"]
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        process = subprocess.Popen(
            [*command(finished_run / "bundle"), *options], stdout=subprocess.DEVNULL, stderr=full, env=environment(), cwd=tmp_path
        )
    try:
        server = ServerProcess(process, f"http://127.0.0.1:{port}", None, "small", tmp_path / "none")  # type: ignore[arg-type]  # no text
        until = time.monotonic() + 30
        while True:
            try:
                assert server.status("/v2/health/ready") == 200
                break
            except OSError:
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.1)
        with Load(server, validated, 2) as load:
            load.until(20)
        assert (load.wrong, load.broken) == (0, 0)
    finally:
        process.kill()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def test_a_token_is_needed_for_all_but_health(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n", encoding="ascii")
    with serving(finished_run / "bundle", tmp_path, *ORT, "--token-file", str(tmp_path / "token")) as server:
        assert server.status("/v2/health/ready") == 200
        assert [server.status(path) for path in ("/v2", f"/v2/models/{server.name}", "/metrics")] == [401, 401, 401]
        request = infer_request(server, np.zeros((1, 1, 8, 8), np.uint8))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 401
        caught.value.close()
        request.add_header("Authorization", "Bearer s3cret")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200


def test_the_process_imports_no_torch(finished_run: Path, tmp_path: Path) -> None:
    with serving(finished_run / "bundle", tmp_path, *ORT) as server:
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
        assert "onnxruntime" in mapped
        assert "libtorch" not in mapped
        assert open_bundle(finished_run / "bundle").has(OUTPUTS)


def test_several_processes_stop_under_load_without_a_broken_connection(finished_run: Path, validated: ValidatedOutputs, tmp_path: Path) -> None:
    with (
        serving(finished_run / "bundle", tmp_path, *ORT, "--processes", "2", "--threads", "1", "--no-grpc") as server,
        Load(server, validated) as load,
    ):
        load.until(50)
        assert server.stop() == 0
    assert (load.wrong, load.broken) == (0, 0), vars(load)
