"""The time of one ONNX file in one runtime, in a process of its own.

    python -m benchmarks.measured_session FILE RUNTIME BATCH THREADS

Imports no PyTorch, so that a measurement takes no longer than what it measures. Prints milliseconds
per call and a hash of the outputs.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHAPE = (3, 32, 32)
SECONDS_A_MEASUREMENT, FEWEST_CALLS = 0.7, 3

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class OutputErrors:
    milliseconds: float
    outputs_sha256: str


def measured_in_a_process(file: Path, runtime: str, batch: int, threads: int) -> OutputErrors:
    command = [sys.executable, "-m", "benchmarks.measured_session", str(file), runtime, str(batch), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return OutputErrors(**json.loads(done.stdout.splitlines()[-1]))


def _measured(file: Path, runtime: str, batch: int, threads: int) -> dict[str, object]:
    """Return the median over the calls of some tenths of a second, without the first call."""
    run = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](file, threads)
    images = np.random.default_rng(0).integers(0, 256, (batch, *SHAPE), dtype=np.uint8)
    outputs = run(images)
    seconds: list[float] = []
    while len(seconds) < FEWEST_CALLS or sum(seconds) < SECONDS_A_MEASUREMENT:
        started = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - started)
    return {"milliseconds": 1e3 * statistics.median(seconds), "outputs_sha256": hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest()}


def _onnxruntime(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def _openvino(file: Path, threads: int) -> Run:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", hints)
    return lambda images: compiled({"image": images})[0]


if __name__ == "__main__":
    path, name, number, count = sys.argv[1:]
    print(json.dumps(_measured(Path(path), name, int(number), int(count))))
