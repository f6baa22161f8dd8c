"""The same bits everywhere: exact networks of each family in every form, runtime and setting.

    python -m benchmarks.exact_bits --data DIR [--networks resnet20 ...] [--images 10000]
        [--combined 500] [--steps 40] [--only TEXT ...] [--out NAME]

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg, 32 x 32. Each network trains for some steps, moves
to the grid, trains there for the same number of steps, and is exported.

All test images and the hostile ones then go through PyTorch's training graph and folded graph
(contiguous and channels_last), the file for TensorRT, OpenVINO, and ONNX Runtime at each of four
optimisation levels, with 1 and 2 threads, in batches of 1, 3 and 64 with a partial last batch. The
first --combined images and the hostile ones go through every combination of these, and two images
go through onnx's ReferenceEvaluator.

With an NVIDIA GPU there are also PyTorch with TF32 off and on, without cuDNN as the exact form
requires, and ONNX Runtime at each level and with TF32. PyTorch with cuDNN is only observed; nothing
depends on it.

A hash of all outputs' bits, in order, is compared. --only selects the forms whose names contain one
of the texts. Writes results/exact_bits.json after each network; results of other networks stay if
everything else was the same.
"""

import argparse
import copy
import hashlib
import importlib.util
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.environment import RESULTS, write_result
from deploy.compare.samples import hostile_images
from export.exact.calibration import calibrate, coarsen_steps
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import GridBits, GridGraph
from export.exact.rewrite import grid_graph
from export.graph.fold import fold
from pipeline.config import parse_config
from pipeline.config.sections import Data
from pipeline.data import open_data
from pipeline.methods import RewrittenGraph
from pipeline.training_graph import ImageFacts, training_graph

NETWORKS = ("resnet20", "wrn-10-1", "shufflenetv2_x0_5", "mobilenetv2", "squeezenet", "vgg11", "resnet18", "preactresnet18", "resnet50")
"""One network of each family, light ones first."""
LEVELS = ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED")
FOLDED = "PyTorch, folded, contiguous"
THREADS, BATCHES = (2, 1), (64, 1, 3)
NUM_CLASSES, SHAPE, NUM_FOR_REFERENCE, TRAINING_BATCH, TORCH_BATCH = 10, (3, 32, 32), 2, 64, 256

Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], NDArray[np.float32]]


class Form(NamedTuple):
    """A network in a runtime and its settings."""

    name: str
    run: Run
    batch: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--combined", type=int, default=500)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--out", default="exact_bits", help="the result file's name")
    options = parser.parse_args()
    data = open_data(Data(name="imagefolder", root=str(options.data)), torch.device("cpu"))
    (test, _) = next(data.test.batches(options.images))
    samples = Samples(test.numpy(), hostile_images(SHAPE).images, options.combined)
    (train, labels) = next(data.train.batches_in_order(torch.randperm(data.train.num_samples, generator=torch.Generator().manual_seed(0)), 64 * 40))
    facts = {
        "images": len(samples.all),
        "images_in_all_combinations": len(samples.some),
        "steps_of_training": options.steps,
        "only": options.only,
        "not_run": _not_run(),
    }
    found = _found_before(facts, options.out)
    for network in options.networks:
        found[network] = _network(network, train, labels, samples, options)
        print(network, "the same bits" if found[network]["same"] else f"NOT the same: {found[network]['different']}", flush=True)
        write_result(options.out, {**facts, "networks": found})


class Samples:
    """All images, and fewer of them for slow forms; both include the hostile ones."""

    def __init__(self, test: Pixels, hostile: Pixels, num_some: int) -> None:
        self.all, self.some = np.concatenate([test, hostile]), np.concatenate([test[:num_some], hostile])
        self.few = np.concatenate([test[:1], hostile[-1:]])


def _not_run() -> list[str]:
    """Return what cannot run on this machine."""
    missing = [] if torch.cuda.is_available() else ["PyTorch and ONNX Runtime on CUDA: there is no GPU here"]
    return missing + ([] if importlib.util.find_spec("openvino") else ["OpenVINO: it is not installed here"])


def _found_before(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the networks of the result file, if they were measured in the same way."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    found: dict[str, Any] = before.get("networks", {})
    return found if facts.items() <= before.items() else {}


def _network(network: str, train: torch.Tensor, labels: torch.Tensor, samples: Samples, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    grid = _trained(network, train, labels, options.steps)
    model = exact_onnx(grid, SHAPE, NUM_CLASSES, {})
    everywhere = _hashes(_forms(grid, model), samples.all, options.only)
    observed = _hashes(_observed(grid), samples.all, options.only)
    combined = _hashes(_combinations(grid, model), samples.some, options.only) if options.combined else {}
    reference = _bits(_reference(model)(samples.few)).tobytes() == _bits(_torch(fold(grid.graph))(samples.few)).tobytes()
    different = [*_different(everywhere), *_different(combined)]
    return {
        "same": not different and reference,
        "different": different,
        "forms_on_all_images": list(everywhere),
        "forms_in_all_combinations": list(combined),
        "observed_same": {name: found == everywhere[FOLDED] for name, found in observed.items()},
        "outputs_sha256": everywhere[FOLDED],
        "reference_evaluator": {"images": len(samples.few), "same": reference},
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }


def _hashes(forms: Iterator[Form], images: Pixels, only: Sequence[str]) -> dict[str, str]:
    """Select the folded form and the requested ones."""
    return {form.name: _hash(form, images) for form in forms if form.name == FOLDED or any(text in form.name for text in only)}


def _different(hashes: dict[str, str]) -> list[str]:
    return [name for name, found in hashes.items() if found != hashes[FOLDED]]


def _trained(network: str, train: torch.Tensor, labels: torch.Tensor, steps: int) -> GridGraph:
    """Train a few steps off the grid and as many on it, on the GPU if there is one.

    This is enough for weights that differ from any initial ones.
    """
    config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
    rewritten = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3))
    _train(rewritten, train, labels, steps, 0.02)
    grid = grid_graph(rewritten.graph.eval(), SHAPE, GridBits())
    calibrate(grid, lambda: torch.split(train, TRAINING_BATCH)[:8])
    _train(RewrittenGraph(grid.graph, rewritten.rules), train, labels, steps, 0.002)
    coarsen_steps(grid)
    return grid


def _train(network: RewrittenGraph, train: torch.Tensor, labels: torch.Tensor, steps: int, rate: float) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.graph.train().to(device)
    optimiser = torch.optim.SGD([p for group in network.rules.parameter_groups for p in group.parameters], lr=rate, momentum=0.9)
    for _, images, classes in zip(range(steps), torch.split(train, TRAINING_BATCH), torch.split(labels, TRAINING_BATCH), strict=False):
        optimiser.zero_grad()
        F.cross_entropy(network.graph(images.to(device)), classes.to(device)).backward()  # type: ignore[no-untyped-call]
        network.rules.add_penalty_gradient()
        network.rules.correct_gradients()
        optimiser.step()
        network.rules.project()
    network.graph.cpu()


def _forms(grid: GridGraph, model: bytes) -> Iterator[Form]:
    """Yield each runtime with each value of each setting; the other settings have their
    defaults."""
    folded = fold(grid.graph)
    yield Form(FOLDED, _torch(folded), TORCH_BATCH)
    yield Form("PyTorch, folded, channels_last", _torch(folded, torch.channels_last), TORCH_BATCH)
    yield Form("PyTorch, training graph", _torch(grid.graph.train(), gradients=True), TORCH_BATCH)
    for level, threads, batch in _settings():
        if _num_changed(level, threads, batch) <= 1:
            yield _onnxruntime_form(model, level, threads, batch)
    yield Form(
        "ONNX Runtime, file for TensorRT, ORT_DISABLE_ALL",
        _onnxruntime(exact_tensorrt_onnx(grid, SHAPE, NUM_CLASSES, {}), "ORT_DISABLE_ALL", THREADS[0]),
        BATCHES[0],
    )
    if importlib.util.find_spec("openvino"):
        yield Form("OpenVINO, f32 hint, batch 64", _openvino(model), 64)
        yield Form("OpenVINO, f32 hint, batch 1", _openvino(model), 1)
    if torch.cuda.is_available():
        yield from _forms_on_cuda(grid)


def _forms_on_cuda(grid: GridGraph) -> Iterator[Form]:
    """Yield ONNX Runtime with the signed file: it has no CUDA kernels for the operations of the
    other file."""
    model = exact_tensorrt_onnx(grid, SHAPE, NUM_CLASSES, {})
    graphs = {"training graph": grid.graph.train(), "folded": fold(grid.graph)}
    for (name, graph), tf32 in itertools.product(graphs.items(), ("off", "on")):
        on_cuda = _torch_on_cuda(graph, tf32=tf32 == "on", cudnn=False)
        yield Form(f"PyTorch on CUDA, {name}, TF32 {tf32}, without cuDNN, batch {TORCH_BATCH}", on_cuda, TORCH_BATCH)
    for level, tf32 in [*((level, "off") for level in LEVELS), (LEVELS[0], "on")]:
        yield Form(f"ONNX Runtime on CUDA, {level}, TF32 {tf32}, batch 64", _onnxruntime_on_cuda(model, level, tf32), 64)


def _observed(grid: GridGraph) -> Iterator[Form]:
    """Yield PyTorch with cuDNN, which may pick Winograd or FFT, whose sums are not exact.

    Nothing here depends on whether it does.
    """
    if torch.cuda.is_available():
        for tf32 in ("off", "on"):
            on_cuda = _torch_on_cuda(fold(grid.graph), tf32=tf32 == "on", cudnn=True)
            yield Form(f"PyTorch on CUDA, folded, TF32 {tf32}, with cuDNN, batch {TORCH_BATCH}", on_cuda, TORCH_BATCH)


def _combinations(grid: GridGraph, model: bytes) -> Iterator[Form]:
    yield Form(FOLDED, _torch(fold(grid.graph)), TORCH_BATCH)
    for level, threads, batch in _settings():
        yield _onnxruntime_form(model, level, threads, batch)
    if torch.cuda.is_available():
        for batch in (1, 3):
            yield Form(
                f"PyTorch on CUDA, folded, TF32 on, without cuDNN, batch {batch}", _torch_on_cuda(fold(grid.graph), tf32=True, cudnn=False), batch
            )
            signed = exact_tensorrt_onnx(grid, SHAPE, NUM_CLASSES, {})
            yield Form(f"ONNX Runtime on CUDA, {LEVELS[0]}, TF32 on, batch {batch}", _onnxruntime_on_cuda(signed, LEVELS[0], "on"), batch)


def _settings() -> Iterator[tuple[str, int, int]]:
    return itertools.product(LEVELS, THREADS, BATCHES)


def _num_changed(level: str, threads: int, batch: int) -> int:
    return (level != LEVELS[0]) + (threads != THREADS[0]) + (batch != BATCHES[0])


def _onnxruntime_form(model: bytes, level: str, threads: int, batch: int) -> Form:
    return Form(f"ONNX Runtime, {level}, {threads} threads, batch {batch}", _onnxruntime(model, level, threads), batch)


def _hash(form: Form, images: Pixels) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(images), form.batch):
        digest.update(_bits(form.run(images[start : start + form.batch])).tobytes())
    return digest.hexdigest()


def _bits(outputs: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(outputs).view(np.uint32)


def _torch(graph: nn.Module, memory_format: torch.memory_format = torch.contiguous_format, *, gradients: bool = False) -> Run:
    graph = graph.to(memory_format=memory_format)

    def run(images: Pixels) -> NDArray[np.float32]:
        with torch.enable_grad() if gradients else torch.inference_mode():
            return graph(torch.from_numpy(images).to(memory_format=memory_format)).detach().numpy()

    return run


def _onnxruntime(model: bytes, level: str, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def _openvino(model: bytes) -> Run:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({"image": images})[0]


def _torch_on_cuda(graph: nn.Module, *, tf32: bool, cudnn: bool) -> Run:
    graph = copy.deepcopy(graph).to("cuda")

    def run(images: Pixels) -> NDArray[np.float32]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.enabled = cudnn
        with torch.inference_mode():
            return graph(torch.from_numpy(images).to("cuda")).cpu().numpy()

    return run


def _onnxruntime_on_cuda(model: bytes, level: str, tf32: str) -> Run:
    """Run with one algorithm for all convolutions, as the runner requires.

    A node that would fall back to the CPU is an error.
    """
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = getattr(onnxruntime.GraphOptimizationLevel, level), 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    provider = ("CUDAExecutionProvider", {"use_tf32": "1" if tf32 == "on" else "0", "cudnn_conv_algo_search": "DEFAULT"})
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError("ONNX Runtime has no CUDA here")
    return lambda images: session.run(None, {"image": images})[0]


def _reference(model: bytes) -> Run:
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))

    def run(images: Pixels) -> NDArray[np.float32]:
        found = evaluator.run(None, {"image": images})
        assert isinstance(found, list)
        outputs: NDArray[np.float32] = found[0]
        return outputs

    return run


if __name__ == "__main__":
    main()
