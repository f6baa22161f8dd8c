"""Host processes run what a file holds. Crash, silence and lack of memory there are findings."""

import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import pixels, random_weights, write_onnx

from deploy.runners.onnxruntime import OnnxRuntimeRunner
from deploy.runners.runner import Runner
from deploy.sandbox.file_kinds import OUT_OF_MEMORY, Opening
from deploy.sandbox.process import HostError, HostProcess, Limits
from deploy.sandbox.wire import Message
from export.errors import DamagedError, NotHereError, UsageError

WEIGHTS = random_weights()
IMAGES = {"image": pixels(4)}


def opened(host: HostProcess, path: Path, runtime: str = "onnxruntime-cpu", *, float64: bool = False, until: str | None = None) -> Runner:
    return host.open(Opening(kind="onnx", path=str(path), runtime=runtime, float64=float64, until=until))


def test_a_file_runs_over_there_as_it_runs_here(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", WEIGHTS)
    with HostProcess(Limits()) as host:
        contents = host.contents("onnx", path)
        assert [(spec.name, spec.dtype) for spec in (*contents.inputs, *contents.outputs)] == [("image", "uint8"), ("logits", "float32")]
        assert (contents.floats, [point.operation for point in contents.points][-2:]) == (("float32",), ["Relu", "Gemm"])
        with opened(host, path) as there, OnnxRuntimeRunner(path) as here:
            assert np.array_equal(there.run(IMAGES)["logits"], here.run(IMAGES)["logits"])
            assert (there.inputs, there.outputs, dict(there.facts)) == (here.inputs, here.outputs, dict(here.facts))
        hidden = opened(host, path, until="hidden").run(IMAGES)["hidden"]
        flat = (IMAGES["image"].reshape(4, -1).astype(np.float64) - 128) / 64
        expected = np.maximum(flat @ WEIGHTS.first.T.astype(np.float64) + WEIGHTS.bias, 0)
        assert np.allclose(hidden, expected, rtol=1e-5, atol=1e-5)
        wide = opened(host, path, float64=True, until="hidden").run(IMAGES)["hidden"]
        assert wide.dtype == np.float64
        assert np.abs(wide - expected).max() < 1e-12
        with pytest.raises(UsageError, match="got inputs"):
            there.run({})


def test_errors_of_ours_keep_their_meaning(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    path = write_onnx(tmp_path / "model.onnx", WEIGHTS)
    with HostProcess(Limits()) as host:
        with pytest.raises(DamagedError, match="is not an ONNX file"):
            host.contents("onnx", tmp_path / "text.onnx")
        with pytest.raises(NotHereError, match="onnxruntime-cuda"):
            opened(host, path, "onnxruntime-cuda")
        with pytest.raises(HostError, match="TypeError"):
            host.ask(Message({"do": "open", "number": 1, "opening": {"kind": "onnx"}}))


def started(monkeypatch: pytest.MonkeyPatch, code: str, seconds: float = 20, gibibytes: float = 16) -> HostProcess:
    """A host process that does something else when it gets a request."""
    program = f"import os, signal, sys, time; r, w = int(sys.argv[1]), int(sys.argv[2]); os.read(r, 1); {code}"
    real = subprocess.Popen

    def other(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        return real([command[0], "-c", program, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", other)
    return HostProcess(Limits(seconds=seconds, gibibytes=gibibytes))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"its process crashed \(SIGSEGV\)"),
        ("os._exit(7)", "its process ended with code 7"),
        ("os.write(w, b'x' * 100); time.sleep(30)", "its process sent nonsense"),
        (r"os.write(w, b'\x02' + b'\0' * 7 + b'hi'); os._exit(0)", "its process ended with code 0"),
    ],
)
def test_a_crash_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, found: str) -> None:
    with started(monkeypatch, code) as host, pytest.raises(DamagedError, match=rf"m\.onnx could not be read: {found}"):
        host.contents("onnx", tmp_path / "m.onnx")


def test_silence_is_a_finding_and_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = started(monkeypatch, "time.sleep(60)", seconds=0.2)
    with pytest.raises(DamagedError, match=r"no answer within 0\.2 s; allow more with --time-limit"):
        host.contents("onnx", tmp_path / "m.onnx")
    host.close()
    assert host._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("gibibytes", "seconds"), [*((value, 1) for value in (math.nan, math.inf, -1, 0.5)), *((1, value) for value in (math.nan, math.inf, 0))]
)
def test_limits_that_say_nothing(gibibytes: float, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"^--(memory|time)-limit "):
        Limits(gibibytes=gibibytes, seconds=seconds)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", WEIGHTS)
    with HostProcess(Limits(gibibytes=1)) as host:
        runner = opened(host, path)
        with pytest.raises(HostError, match="it needs more memory than the 1 GiB it may have; allow more with --memory-limit"):
            runner.run({"image": np.zeros((2**26, 1, 4, 4), np.uint8)})


def test_no_limit_is_not_called_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = started(monkeypatch, f"raise SystemExit({OUT_OF_MEMORY})", gibibytes=0)
    with pytest.raises(DamagedError, match="it needs more memory than this machine gives"):
        host.contents("onnx", tmp_path / "m.onnx")
    host.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("leave", [HostProcess.close, lambda host: host._process.kill()])
def test_nothing_is_left_behind(leave: Callable[[HostProcess], object]) -> None:
    host = HostProcess(Limits())
    leave(host)
    host.close()
    assert not alive(host._process.pid)
