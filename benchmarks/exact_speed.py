"""Speed and size of the exact file against the float32 file, in ONNX Runtime and OpenVINO on a CPU.

    python -m benchmarks.exact_speed [--networks resnet18 ...] [--rounds 3] [--threads 2]

Every measurement is a process of its own, because the idle threads of one session disturb another.
Rounds are interleaved: in each, every (file, runtime, batch) is measured once, and ratios are taken
within the round. Weights are initial ones, which do not change the time. The outputs of both
runtimes on the exact file are compared to the bit.

The result also has what bounds every ratio: the multiplications and additions per second of large
matrix products in float32 and in int8, and the share of that which each measurement reaches. Writes
results/exact_speed.json after each network; results of other networks stay.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.environment import RESULTS, environment, write_result
from benchmarks.measured_session import SHAPE, OutputErrors, measured_in_a_process
from export.exact.calibration import calibrate
from export.exact.dialects import exact_onnx
from export.exact.grid import GridBits
from export.exact.rewrite import grid_graph
from export.graph.fold import fold
from export.onnx import onnx_from_graph
from pipeline.config import parse_config
from pipeline.networks import NETWORKS
from pipeline.training_graph import ImageFacts, training_graph

NUM_CLASSES = 10
PRODUCT_SIZE, PRODUCT_ROUNDS = 2048, 9
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
    products = _products_a_second(options.threads)
    facts = {"images": " x ".join(map(str, SHAPE)), "threads": options.threads, "targets": TARGETS}
    found = _found_before()
    for network in options.networks:
        found[network] = _compared(network, options.rounds, options.threads, products)
        write_result("exact_speed", {**facts, "networks": found})


def _found_before() -> dict[str, Any]:
    """Return the networks of the result file, if the same machine measured them."""
    path = RESULTS / "exact_speed.json"
    before = json.loads(path.read_bytes()) if path.is_file() else {"environment": {}, "networks": {}}
    same = all(before["environment"].get(key) == value for key, value in environment().items() if key in ("cpu", "cores", "onnxruntime-gpu"))
    found: dict[str, Any] = before["networks"] if same else {}
    return found


def _products_a_second(threads: int) -> dict[str, float]:
    """Return 10^9 multiply-adds per second for square matrices: medians, with both kinds in
    turn."""
    torch.set_num_threads(threads)
    floats, integers = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE), torch.randint(-127, 128, (2, PRODUCT_SIZE, PRODUCT_SIZE), dtype=torch.int8)
    kinds: dict[str, Callable[[], torch.Tensor]] = {"float32": lambda: floats[0] @ floats[1], "int8": lambda: torch._int_mm(integers[0], integers[1])}
    rounds = [{kind: _seconds(product) for kind, product in kinds.items()} for _ in range(1 + PRODUCT_ROUNDS)][1:]
    return {kind: round(PRODUCT_SIZE**3 / statistics.median(each[kind] for each in rounds) / 1e9, 1) for kind in kinds}


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    product()
    return time.perf_counter() - started


def _multiplications(graph: nn.Module) -> int:
    """Return the multiplications of one image, in convolutions and linear layers."""
    counts: list[int] = []
    for layer in graph.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, _, output: counts.append(output.numel() * layer.weight[0].numel()))
    with torch.inference_mode():
        graph(torch.zeros((1, *SHAPE), dtype=torch.uint8))
    return sum(counts)


def _compared(network: str, num_rounds: int, threads: int, products: dict[str, float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files, multiplications = _files(network, Path(folder))
        rounds = [_round(files, threads) for _ in range(num_rounds)]
        result = {
            "rounds": num_rounds,
            "bytes": {form: path.stat().st_size for form, path in files.items()},
            "size": round(files["exact"].stat().st_size / files["float32"].stat().st_size, 4),
            "milliseconds": {name: _spread([each[name].milliseconds for each in rounds]) for name in rounds[0]},
            "multiplications_of_an_image": multiplications,
            "large_matrix_products": products,
            "share_of_large_products": {name: round(_share(rounds, name, multiplications, products), 3) for name in rounds[0]},
            "times_as_fast": {f"{runtime}, batch {batch}": _ratio(rounds, runtime, batch) for runtime in RUNTIMES for batch in BATCHES},
            "same_bits_in_both_runtimes": all(_same_bits(each) for each in rounds),
        }
    print(network, json.dumps(result["times_as_fast"]), "size", result["size"], "same bits:", result["same_bits_in_both_runtimes"], flush=True)
    return result


def _share(rounds: list[dict[str, OutputErrors]], name: str, multiplications: int, products: dict[str, float]) -> float:
    form, _, batch = name.split(", ")
    milliseconds = statistics.median(each[name].milliseconds for each in rounds)
    rate = multiplications * int(batch.removeprefix("batch ")) / milliseconds / 1e6
    return rate / products["float32" if form == "float32" else "int8"]


def _files(network: str, folder: Path) -> tuple[dict[str, Path], int]:
    """Return the files by form, and the number of multiplications per image."""
    config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
    graph = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval()
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    folded = fold(graph)
    files["float32"].write_bytes(onnx_from_graph(folded, SHAPE, {}))
    grid = grid_graph(graph, SHAPE, GridBits())
    generator = torch.Generator().manual_seed(0)
    calibrate(grid, lambda: [torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8, generator=generator)])
    files["exact"].write_bytes(exact_onnx(grid, SHAPE, NUM_CLASSES, {}))
    return files, _multiplications(folded)


def _round(files: dict[str, Path], threads: int) -> dict[str, OutputErrors]:
    return {_name(form, runtime, batch): measured_in_a_process(files[form], runtime, batch, threads) for form, runtime, batch in _all()}


def _name(form: str, runtime: str, batch: int) -> str:
    return f"{form}, {runtime}, batch {batch}"


def _all() -> Iterator[tuple[str, str, int]]:
    for runtime in RUNTIMES:
        for batch in BATCHES:
            for form in FORMS:
                yield form, runtime, batch


def _ratio(rounds: list[dict[str, OutputErrors]], runtime: str, batch: int) -> dict[str, float]:
    float32, exact = (_name(form, runtime, batch) for form in FORMS)
    return _spread([each[float32].milliseconds / each[exact].milliseconds for each in rounds])


def _same_bits(measured: dict[str, OutputErrors]) -> bool:
    return all(len({measured[_name("exact", runtime, batch)].outputs_sha256 for runtime in RUNTIMES}) == 1 for batch in BATCHES)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()
