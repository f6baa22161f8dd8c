"""Speed and size of the exact file against the float32 file of the same network, in ONNX Runtime and OpenVINO on a CPU.

    python -m benchmarks.exact_speed [--networks resnet18 ...] [--rounds 5] [--threads 2]

Every measurement is a process of its own, because the idle threads of one session disturb another. Rounds are interleaved: in
each, every (file, runtime, batch) is measured once, and ratios are taken within the round. Weights are initial ones: they do not
change the time. The outputs of both runtimes on the exact file are compared too, to the bit. Writes results/exact_speed.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import write_result
from export.exact.calibration import calibrate
from export.exact.onnx import exact_onnx
from export.exact.rewrite import GridBits, grid_graph
from export.fold import fold
from export.onnx import onnx_from_graph
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import parse_config

NUM_CLASSES, SIZE = 10, 32
NETWORKS = ("resnet18", "resnet20", "resnet50", "vgg11", "squeezenet", "shufflenetv2_x1_0", "mobilenetv2", "wrn20", "preactresnet18")
BATCHES = (1, 64)
RUNTIMES = ("onnxruntime", "openvino")
FORMS = ("float32", "exact")
TARGETS = {"resnet18": {"onnxruntime": {1: 5.0, 64: 2.8}, "openvino": {64: 6.0}}}
SECONDS_A_MEASUREMENT, FEWEST_CALLS = 1.0, 3

Image = NDArray[np.uint8]
Run = Callable[[Image], NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "RUNTIME", "BATCH"), help="one measurement; what the script calls itself with")
    options = parser.parse_args()
    if options.measure:
        path, runtime, batch = options.measure
        print(json.dumps(_measured(Path(path), runtime, int(batch), options.threads)))
        return
    results = {network: _compared(network, options.rounds, options.threads) for network in options.networks}
    circumstances = {"images": f"3 x {SIZE} x {SIZE}", "rounds": options.rounds, "threads": options.threads, "targets": TARGETS}
    print(write_result("exact_speed", {**circumstances, "networks": results}))


def _compared(network: str, num_rounds: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = _files(network, Path(folder))
        rounds = [_round(files, threads) for _ in range(num_rounds)]
        result = {
            "bytes": {form: path.stat().st_size for form, path in files.items()},
            "size": round(files["exact"].stat().st_size / files["float32"].stat().st_size, 4),
            "milliseconds": {name: _spread([each[name]["milliseconds"] for each in rounds]) for name in rounds[0]},
            "times_as_fast": {f"{runtime}, batch {batch}": _ratio(rounds, runtime, batch) for runtime in RUNTIMES for batch in BATCHES},
            "same_bits_in_both_runtimes": all(_same_bits(each) for each in rounds),
        }
    print(network, json.dumps(result["times_as_fast"]), "size", result["size"], "same bits:", result["same_bits_in_both_runtimes"], flush=True)
    return result


def _files(network: str, folder: Path) -> dict[str, Path]:
    shape = (3, SIZE, SIZE)
    config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
    graph = training_graph(config, ImageFacts(shape, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval()
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    files["float32"].write_bytes(onnx_from_graph(fold(graph), shape, {}))
    grid = grid_graph(graph, shape, GridBits())
    generator = torch.Generator().manual_seed(0)
    calibrate(grid, lambda: [torch.randint(0, 256, (32, *shape), dtype=torch.uint8, generator=generator)])
    files["exact"].write_bytes(exact_onnx(grid, shape, NUM_CLASSES, {}))
    return files


def _round(files: dict[str, Path], threads: int) -> dict[str, dict[str, Any]]:
    return {f"{form}, {runtime}, batch {batch}": _in_a_process(files[form], runtime, batch, threads) for form, runtime, batch in _all()}


def _all() -> Iterator[tuple[str, str, int]]:
    for runtime in RUNTIMES:
        for batch in BATCHES:
            for form in FORMS:
                yield form, runtime, batch


def _in_a_process(path: Path, runtime: str, batch: int, threads: int) -> dict[str, Any]:
    arguments = ["--threads", str(threads), "--measure", str(path), runtime, str(batch)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.exact_speed", *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(path: Path, runtime: str, batch: int, threads: int) -> dict[str, object]:
    """Milliseconds a call, the median over the calls of about a second, and the bits of the outputs."""
    run = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](path, threads)
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, SIZE, SIZE), dtype=np.uint8)
    outputs = run(images)
    seconds: list[float] = []
    while len(seconds) < FEWEST_CALLS or sum(seconds) < SECONDS_A_MEASUREMENT:
        started = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - started)
    return {"milliseconds": 1e3 * statistics.median(seconds), "bits": outputs.view(np.uint32).ravel().tolist()}


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    return lambda images: compiled({"image": images})[0]


def _ratio(rounds: list[dict[str, dict[str, Any]]], runtime: str, batch: int) -> dict[str, float]:
    form = "{}, " + f"{runtime}, batch {batch}"
    return _spread([each[form.format("float32")]["milliseconds"] / each[form.format("exact")]["milliseconds"] for each in rounds])


def _same_bits(measured: dict[str, dict[str, Any]]) -> bool:
    return all(len({str(measured[f"exact, {runtime}, batch {batch}"]["bits"]) for runtime in RUNTIMES}) == 1 for batch in BATCHES)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()
