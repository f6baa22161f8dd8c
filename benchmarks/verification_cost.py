"""What verifying costs: time against bare forward passes of the same stages, and memory.

    python -m benchmarks.verification_cost

Time is CPU time of this process, so that other processes on the machine do not count. Memory is the
peak of a process of its own for each number of samples, to show how it grows with that number.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.corpus import images, network, trained_weights
from benchmarks.environment import write_result
from deploy.runners.forms import Form
from deploy.runners.onnxruntime import OnnxRuntimeRunner
from deploy.runners.runner import Array, Runner, TensorSpec
from deploy.runners.torch import TorchRunner
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.run_chain import run_chain
from export.graph.fold import fold
from export.graph.layers import training_only_parts
from export.onnx import onnx_from_graph
from pipeline.config import parse_config
from pipeline.training_graph import ImageFacts, training_graph

NUM_IMAGES, BATCH, SIZE, ROUNDS = 10_000, 250, 32, 3
FEW, MANY = 1_000, 100_000
IMAGE, LOGITS = TensorSpec("image", "uint8", (None, 3, SIZE, SIZE)), TensorSpec("logits", "float32", (None, 10))
Open = Mapping[str, Callable[[], Runner]]


def batches(number: int) -> Iterator[dict[str, Array]]:
    """Yield synthetic images of CIFAR's shape, one batch at a time."""
    rng = np.random.default_rng(0)
    for start in range(0, number, BATCH):
        yield {"image": rng.integers(0, 256, (min(BATCH, number - start), 3, SIZE, SIZE), dtype=np.uint8)}


def stages(folder: Path) -> Open:
    """Return the training graph, folded graph, ONNX Runtime and float64 evaluation of a
    ResNet-20."""
    config = parse_config("{network: {name: resnet20}, method: {name: czmig}}")
    graph = training_graph(config, ImageFacts((3, SIZE, SIZE), 10, (128.0,) * 3, (64.0,) * 3)).graph
    folded = fold(graph)
    path = folder / "model.onnx"
    path.write_bytes(onnx_from_graph(folded, (3, SIZE, SIZE), {}))
    for part in training_only_parts(graph.train()).values():
        part.active = False
    return {
        "training graph": lambda: TorchRunner(graph, [IMAGE], [LOGITS], gradients=True),
        "folded graph": lambda: TorchRunner(folded, [IMAGE], [LOGITS]),
        "ONNX Runtime": lambda: OnnxRuntimeRunner(path, threads=1),
        "float64 evaluation": lambda: TorchRunner(folded, [IMAGE], [LOGITS], precision="float64"),
    }


@dataclass(frozen=True, kw_only=True)
class OpenedBy(Form):
    """A form that a function opens."""

    opener: Callable[[], Runner]

    def open(self) -> Runner:
        return self.opener()


def chain_of(opens: Open) -> Chain:
    first, second, third, last = (
        Stage(name=name, form=OpenedBy(runtime=name, precision="float64" if name.startswith("float64") else "float32", opener=open_))
        for name, open_ in opens.items()
    )
    links = (Link(first.name, second.name, "bitwise"), Link(second.name, third.name, "budget"))
    return Chain(stages=(first, second, third), links=links, reference=last, training=first.name)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def bare(open_: Callable[[], Runner], number: int) -> float:
    with open_() as runner:
        return cpu_seconds(lambda: [runner.run(batch) for batch in batches(number)])


def time_beside_bare_passes(number: int) -> dict[str, object]:
    """Time rounds of bare passes and of verifying in turn, because other load slows both down.

    Float64 is timed on a few images.
    """
    with tempfile.TemporaryDirectory() as folder:
        opens = stages(Path(folder))
        rounds = [one_round(opens, number) for _ in range(ROUNDS)]
        with opens["float64 evaluation"]() as runner:
            float64 = cpu_seconds(lambda: [runner.run(batch) for batch in batches(FEW)]) * number / FEW
    ratios = [each["verifying"] / sum(seconds for name, seconds in each.items() if name != "verifying") for each in rounds]
    return {
        "images": number,
        "seconds": rounds,
        "float64_seconds_if_of_all": float64,
        "ratio_to_the_three_passes": statistics.median(ratios),
        "ratios": sorted(ratios),
    }


def one_round(opens: Open, number: int) -> dict[str, float]:
    making = cpu_seconds(lambda: list(batches(number)))
    passes = {name: bare(open_, number) - making for name, open_ in opens.items() if not name.startswith("float64")}
    verifying = cpu_seconds(lambda: run_chain(chain_of(opens), lambda: batches(number), Record())) - making
    return {**passes, "verifying": verifying}


def peak_of(number: int) -> dict[str, object]:
    """Measure the peak in a process of its own, which reads its samples from a file."""
    with tempfile.TemporaryDirectory() as name:
        onnx.save(network(trained_weights()), Path(name) / "model.onnx")
        np.savez(Path(name) / "samples.npz", image=images(FEW).repeat(number // FEW, axis=0))
        command = [sys.executable, "-m", "benchmarks.verification_cost", "--peak", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(folder: Path) -> None:
    """Print the peak of this process and of its largest host process, for a pair of files."""
    pair = PairRequest(reference=folder / "model.onnx", candidate=folder / "model.onnx", samples=str(folder / "samples.npz"), batch_size=BATCH)
    before = own_peak()
    verdict = verify_pair(pair)
    hosts = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"samples": verdict.samples.count, "passed": verdict.passed, "kib_before": before, "kib": own_peak(), "kib_of_hosts": hosts}))


def own_peak() -> int:
    """Return the peak in KiB.

    getrusage is not used, because it includes what the parent had when the process was started.
    """
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", type=Path)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    asked = parser.parse_args()
    if asked.peak:
        print_peak(asked.peak)
        return
    memory = [peak_of(number) for number in (FEW, MANY)]
    print(memory)
    found = time_beside_bare_passes(asked.images)
    print(found)
    print(write_result("verification_cost", {"time": found, "memory": memory}))


if __name__ == "__main__":
    main()
