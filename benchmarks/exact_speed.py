"""Speed and size of the exact file against the float32 file of the same network, in ONNX Runtime and OpenVINO on a CPU.

    python -m benchmarks.exact_speed [--networks resnet18 ...] [--rounds 3] [--threads 2]

Every measurement is a process of its own, because the idle threads of one session disturb another. Rounds are interleaved: in
each, every (file, runtime, batch) is measured once, and ratios are taken within the round. Weights are initial ones: they do not
change the time. The outputs of both runtimes on the exact file are compared too, to the bit. Writes results/exact_speed.json after
each network; what it holds of other networks stays.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, environment, write_result
from benchmarks.measured_session import SHAPE, Measured, measured_in_a_process
from export.exact.calibration import calibrate
from export.exact.onnx import exact_onnx
from export.exact.rewrite import GridBits, grid_graph
from export.fold import fold
from export.onnx import onnx_from_graph
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import parse_config
from pipeline.networks import NETWORKS

NUM_CLASSES = 10
BATCHES = (1, 64)
RUNTIMES = ("onnxruntime", "openvino")
FORMS = ("float32", "exact")
TARGETS = {"resnet18": {"size": 0.26, "onnxruntime": {1: 5.0, 64: 2.8}, "openvino": {64: 6.0}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS, "wrn-16-8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    facts = {"images": " x ".join(map(str, SHAPE)), "threads": options.threads, "targets": TARGETS}
    found = _found_before()
    for network in options.networks:
        found[network] = _compared(network, options.rounds, options.threads)
        write_result("exact_speed", {**facts, "networks": found})


def _found_before() -> dict[str, Any]:
    """The networks of the result file, where the same machine measured them."""
    path = RESULTS / "exact_speed.json"
    before = json.loads(path.read_bytes()) if path.is_file() else {"environment": {}, "networks": {}}
    same = all(before["environment"].get(key) == value for key, value in environment().items() if key in ("cpu", "cores", "onnxruntime-gpu"))
    found: dict[str, Any] = before["networks"] if same else {}
    return found


def _compared(network: str, num_rounds: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = _files(network, Path(folder))
        rounds = [_round(files, threads) for _ in range(num_rounds)]
        result = {
            "rounds": num_rounds,
            "bytes": {form: path.stat().st_size for form, path in files.items()},
            "size": round(files["exact"].stat().st_size / files["float32"].stat().st_size, 4),
            "milliseconds": {name: _spread([each[name].milliseconds for each in rounds]) for name in rounds[0]},
            "times_as_fast": {f"{runtime}, batch {batch}": _ratio(rounds, runtime, batch) for runtime in RUNTIMES for batch in BATCHES},
            "same_bits_in_both_runtimes": all(_same_bits(each) for each in rounds),
        }
    print(network, json.dumps(result["times_as_fast"]), "size", result["size"], "same bits:", result["same_bits_in_both_runtimes"], flush=True)
    return result


def _files(network: str, folder: Path) -> dict[str, Path]:
    config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
    graph = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval()
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    files["float32"].write_bytes(onnx_from_graph(fold(graph), SHAPE, {}))
    grid = grid_graph(graph, SHAPE, GridBits())
    generator = torch.Generator().manual_seed(0)
    calibrate(grid, lambda: [torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8, generator=generator)])
    files["exact"].write_bytes(exact_onnx(grid, SHAPE, NUM_CLASSES, {}))
    return files


def _round(files: dict[str, Path], threads: int) -> dict[str, Measured]:
    return {_name(form, runtime, batch): measured_in_a_process(files[form], runtime, batch, threads) for form, runtime, batch in _all()}


def _name(form: str, runtime: str, batch: int) -> str:
    return f"{form}, {runtime}, batch {batch}"


def _all() -> Iterator[tuple[str, str, int]]:
    for runtime in RUNTIMES:
        for batch in BATCHES:
            for form in FORMS:
                yield form, runtime, batch


def _ratio(rounds: list[dict[str, Measured]], runtime: str, batch: int) -> dict[str, float]:
    float32, exact = (_name(form, runtime, batch) for form in FORMS)
    return _spread([each[float32].milliseconds / each[exact].milliseconds for each in rounds])


def _same_bits(measured: dict[str, Measured]) -> bool:
    return all(len({measured[_name("exact", runtime, batch)].outputs_sha256 for runtime in RUNTIMES}) == 1 for batch in BATCHES)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()
