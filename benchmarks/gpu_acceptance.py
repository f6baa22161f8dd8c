"""Acceptance on a machine with an NVIDIA GPU and TensorRT: build engines, verify links, measure.

    python -m benchmarks.gpu_acceptance [--network resnet18] [--rounds 5] [--seconds 1]
        [--epochs 10] [--minutes M] [--parts bundle training speed] [--out FILE]

Run it once. It writes one result file and has three parts.

`bundle`: a network is trained on the built-in digits, exported, verified in every available
runtime, given engines in float32, float16 and exact, and verified again from its files. Every link
and every check of an engine is in the result, with the reason if one did not run.

`training`: a few steps of every method, replayed as a CUDA graph and launched kernel by kernel,
must leave the same bits. The time of both is measured.

`speed`: the named network on 3 x 32 x 32 images with initial weights, from host memory to host
memory, in every available form and runtime. The outputs of the exact form are compared to the bit.
What is not available is reported and not measured.

The file is written again after every step, so that earlier results stay if a later step fails or
the machine is lost. After --minutes no new step begins. A part that is not requested is kept from
the file of an earlier run on the same machine with the same versions. Exits with 0 if everything
that ran holds, otherwise with 3. "complete" in the result is true only if everything ran.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn

from benchmarks.environment import RESULTS, environment
from benchmarks.replayed_training import METHODS, different_tensors, seconds_a_step
from deploy.progress import Outcome
from deploy.runners.runner import Runner
from deploy.runners.runtimes import open_file, require_runtimes
from deploy.runners.tensorrt import EngineFile, open_engine
from deploy.runners.torch import available_device
from export.bundle import json_bytes
from export.errors import NotHereError
from export.exact.calibration import calibrate
from export.exact.dialects import exact_tensorrt_onnx
from export.exact.grid import GridBits
from export.exact.rewrite import grid_graph
from export.files import write_file
from export.graph.fold import fold
from export.onnx import onnx_from_graph
from export.tensorrt.builder import Batches, EngineRequest, engine_from_onnx
from export.tensorrt.float16 import float16_onnx
from export.tensorrt.record import EnginePrecision
from export.tensorrt.runtime import FLAVOURS, Flavour, gpu_here
from pipeline import run
from pipeline.bundle.engines import EngineOptions
from pipeline.cli.console import Console
from pipeline.config import load_config, parse_config
from pipeline.run_folder import RunFolder
from pipeline.run_request import EngineExportRequest, TrainExportRequest
from pipeline.training_graph import ImageFacts, training_graph

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SHAPE, NUM_CLASSES = (3, 32, 32), 10
BATCHES = (1, 8, 64, 256)
FORMS: tuple[EnginePrecision, ...] = ("float32", "float16", "exact")
ON_THE_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")
TIMED = (("resnet20", "batchnorm"), ("resnet110", "batchnorm"), ("resnet110", "czmig"))
FEWEST_CALLS, WARM_UP_CALLS = 5, 3
NOT_COMPARED = frozenset({"date", "load", "torch_threads"})
"""What may differ between two runs whose parts are in one file."""

OF_A_LINK = (
    *("from", "to", "runtime", "device", "required", "observed", "status", "reason", "samples"),
    *("max_ulp", "max_abs", "budget", "top1_changes", "ties"),
)
"""What the result keeps of each link and check."""

Images = NDArray[np.uint8]
Run = Callable[[Images], NDArray[np.float32]]
Json = dict[str, Any]
Found = TypeVar("Found")


@dataclass
class Result:
    """The result file while it is being made."""

    path: Path
    ends: float
    """A time on the monotonic clock; after it no step begins."""
    data: Json

    @property
    def parts(self) -> list[Json]:
        return [self.data[name] for name in PARTS if name in self.data]

    @property
    def failed(self) -> list[str]:
        return [reason for part in self.parts for reason in part["failed"]]

    @property
    def missing(self) -> list[str]:
        return sorted({reason for part in self.parts for reason in part["not_run"].values()})

    def save(self) -> None:
        done = all(name in self.data and self.data[name]["finished"] for name in PARTS)
        self.data |= {"complete": done and not self.missing and not self.failed, "failed": self.failed}
        write_file(self.path, json_bytes(self.data))


@dataclass
class Part:
    """One part of the result.

    An error in a step is noted, and the next step follows.
    """

    result: Result
    found: Json = field(default_factory=lambda: {"finished": False, "failed": [], "not_run": {}})

    def attempt(self, step: str, work: Callable[[], Found]) -> Found | None:
        """Return the result of `work`; None if it is not available, failed, or had no time."""
        try:
            if time.monotonic() > self.result.ends:
                raise NotHereError("there was no time left for it")
            return work()
        except NotHereError as error:
            self.found["not_run"][step] = str(error)
        except Exception as error:
            traceback.print_exc()
            self.found["failed"].append(f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:400]}")
        finally:
            self.result.save()
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    ends = time.monotonic() + 60 * options.minutes
    result = Result(options.out, ends, _begun(options.out, options.parts))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        part = Part(result)
        result.data[name] = part.found
        part.attempt(name, partial(PARTS[name], part, options))
        part.found["finished"] = True
        result.save()
    for reason in result.missing:
        print(f"not run: {reason}")
    print(f"{_ending(result)}; {options.out}")
    return 3 if result.failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a measurement takes at least, shared out over the rounds")
    parser.add_argument("--epochs", type=int, default=10, help="of training on the digits")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no new step begins")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_acceptance.json")
    return parser.parse_args(arguments)


def _begun(path: Path, asked: Sequence[str]) -> Json:
    """Return a new result, with parts of an earlier one that are not requested.

    The earlier parts must come from the same machine.
    """
    head: Json = {"environment": environment(), "gpu": _gpu(), "tensorrt": _versions()}
    if not path.is_file():
        return head
    earlier = json.loads(path.read_bytes())
    kept = [name for name in PARTS if name not in asked and name in earlier]
    return head | ({name: earlier[name] for name in kept} if _machine(earlier) == _machine(head) else {})


def _machine(result: Json) -> Json:
    told = {name: value for name, value in result["environment"].items() if name not in NOT_COMPARED}
    return {"environment": told, "gpu": result["gpu"], "tensorrt": result["tensorrt"]}


def _ending(result: Result) -> str:
    if result.failed:
        return f"FAILED: {'; '.join(result.failed)}"
    ran = any(part.get("measured") or part.get("links") for part in result.parts)
    return "all that ran holds" if ran else "nothing could be run or measured here"


def _gpu() -> JsonValue:
    try:
        return dict(vars(gpu_here()))
    except NotHereError as error:
        if not torch.cuda.is_available():
            return f"not here: {error}"
        found = torch.cuda.get_device_properties(0)
        return {"name": found.name, "capability": f"{found.major}.{found.minor}", "memory": found.total_memory, "cuda_of_torch": torch.version.cuda}


def _versions() -> JsonValue:
    found: dict[str, JsonValue] = {}
    for flavour in FLAVOURS.values():
        try:
            found[flavour.runtime] = str(flavour.load().__version__)
        except NotHereError as error:
            found[flavour.runtime] = f"not here: {error}"
    return found


def _bundle(part: Part, options: argparse.Namespace) -> None:
    """Train, export and verify in every available runtime; then build engines and verify again.

    There is an engine of each form with each flavour.
    """
    console = Console()
    present = [name for name in ON_THE_GPU if part.attempt(f"links to {name}", partial(_is_here, name))]
    overrides = (
        f"training.epochs={options.epochs}",
        "training.schedule={name: cosine}",
        "export.tensorrt=false",
        f"verify.runtimes=[{', '.join(('onnxruntime-cpu', *present))}]",
    )
    part.found |= {"epochs": options.epochs, "links": [], "engines": {}}
    with tempfile.TemporaryDirectory() as folder:
        config, place = load_config(QUICKSTART, overrides), Path(folder) / "run"
        made = part.attempt("train, export and verify", lambda: run.carry_out(TrainExportRequest(config=config, folder=RunFolder(place)), console))
        if made is None:
            return
        _note(part, made, "without engines")
        for flavour in FLAVOURS.values():
            for form in FORMS:
                part.attempt(f"{flavour.runtime} {form}", partial(_with_engine, part, Path(str(made.facts["bundle"])), flavour, form, console))


def _is_here(runtime: str) -> bool:
    require_runtimes([runtime])
    return True


def _with_engine(part: Part, bundle: Path, flavour: Flavour, form: EnginePrecision, console: Console) -> None:
    """Add an engine to a bundle; note its record and the results of its links and checks."""
    options = EngineOptions(flavour=flavour.name, precisions=(form,))
    outcome = run.carry_out(EngineExportRequest(bundle=bundle, options=options), console)
    engines: Any = outcome.facts["engines"]
    part.found["engines"] |= engines
    _note(part, outcome, f"{flavour.runtime} {form}")


def _note(part: Part, outcome: Outcome, what: str) -> None:
    """Note the new links in short, those that did not run, and those that failed."""
    verification: Any = outcome.facts["verification"]
    known = {(link["from"], link["to"]) for link in part.found["links"]}
    for link in verification["links"]:
        if (link["from"], link["to"]) not in known:
            part.found["links"].append({name: link[name] for name in OF_A_LINK})
            if link["status"] == "not run":
                part.found["not_run"][f"{link['from']} -> {link['to']}"] = link["reason"]
    part.found["checks"] = [check for check in verification["invariance"] if check["stage"].startswith("engine ") or check["status"] == "failed"]
    if outcome.failure is not None:
        part.found["failed"].append(f"{what}: {outcome.failure}")


def _training(part: Part, options: argparse.Namespace) -> None:
    """Run every method; then measure the time of a step of deep networks."""
    part.found |= {"same_bits_of_replayed": {}, "measured": {}}
    if part.attempt("replayed training", partial(available_device, "cuda")) is None:
        return
    for method in METHODS:
        different = part.attempt(f"replayed training, {method}", partial(different_tensors, method, "cuda"))
        if different is not None:
            part.found["same_bits_of_replayed"][method] = {setting: not names for setting, names in different.items()}
            part.found["failed"] += [f"{method}, {setting}: other bits in {', '.join(names[:3])}" for setting, names in different.items() if names]
    for network, method in TIMED:
        measured = part.attempt(f"time of a step, {network}, {method}", partial(seconds_a_step, network, method, "cuda", options.rounds))
        part.found["measured"][f"{network}, {method}"] = measured


@dataclass(frozen=True)
class Contestant:
    """A form of the network in a runtime."""

    form: EnginePrecision
    runtime: str
    run: Run

    @property
    def name(self) -> str:
        return f"{self.form}, {self.runtime}"


def _speed(part: Part, options: argparse.Namespace) -> None:
    """Measure every contestant at every batch size, in interleaved rounds; one that fails drops
    out."""
    part.found |= {
        "network": options.network,
        "images": "3 x 32 x 32",
        "rounds": options.rounds,
        "errors": {},
        "same_bits_of_exact": {},
        "measured": {},
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held, _without_tf32():
        forms = _Forms(options.network, Path(folder))
        contestants = [each for each in _contestants(forms, held, part) if _compared(forms, each, part)]
        times: dict[str, dict[int, list[float]]] = {each.name: {size: [] for size in BATCHES} for each in contestants}
        for _ in range(options.rounds):
            for size in BATCHES:
                contestants = [each for each in contestants if _timed(part, each, size, times, options.seconds / options.rounds)]


def _timed(part: Part, contestant: Contestant, size: int, times: Mapping[str, dict[int, list[float]]], seconds: float) -> bool:
    """Measure once more; return whether that was possible."""
    name = contestant.name
    found = part.attempt(f"{name}, batch {size}", lambda: _milliseconds(contestant.run, _images(size), seconds))
    times[name][size] += found or []
    part.found["measured"][name] = {str(size): _spread(each, size) for size, each in times[name].items() if each}
    return found is not None


class _Forms:
    """A network's graphs and files."""

    def __init__(self, network: str, folder: Path) -> None:
        config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
        torch.manual_seed(0)
        graph = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval()
        self.float32 = fold(graph)
        grid = grid_graph(graph, SHAPE, GridBits())
        calibrate(grid, lambda: [torch.from_numpy(_images(64))])
        self.exact = fold(grid.graph)
        plain = onnx_from_graph(self.float32, SHAPE, {})
        self.for_engines = {"float32": plain, "float16": float16_onnx(plain), "exact": exact_tensorrt_onnx(grid, SHAPE, NUM_CLASSES, {})}
        self.files = {form: folder / f"{form}.onnx" for form in self.for_engines}
        """Files for ONNX Runtime on a GPU, which reads the same files as TensorRT."""
        for form, content in self.for_engines.items():
            self.files[form].write_bytes(content)
        images = torch.from_numpy(_images(max(BATCHES)))
        with torch.inference_mode():
            self.exact_outputs: NDArray[np.float32] = self.exact(images).numpy()
            self.outputs: NDArray[np.float32] = self.float32(images).numpy()


def _contestants(forms: _Forms, held: ExitStack, part: Part) -> Iterator[Contestant]:
    for form in FORMS:
        makers: dict[str, Callable[[], Run]] = {
            **{name: partial(_in_onnxruntime, name, forms, form, held) for name in ON_THE_GPU},
            "torch": partial(_torch, forms, form, compiled=False),
            "torch, compiled": partial(_torch, forms, form, compiled=True),
            **{flavour.runtime: partial(_in_tensorrt, flavour, forms, form, held) for flavour in FLAVOURS.values()},
        }
        for runtime, make in makers.items():
            made = part.attempt(f"{form}, {runtime}", make)
            if made is not None:
                yield Contestant(form, runtime, made)


def _in_onnxruntime(runtime: str, forms: _Forms, form: EnginePrecision, held: ExitStack) -> Run:
    return _as_run(held.enter_context(open_file(runtime, forms.files[form])))


def _in_tensorrt(flavour: Flavour, forms: _Forms, form: EnginePrecision, held: ExitStack) -> Run:
    return _as_run(held.enter_context(_engine(forms, form, flavour)))


def _engine(forms: _Forms, form: EnginePrecision, flavour: Flavour) -> Runner:
    wanted = EngineRequest(precision=form, batches=Batches(1, 64, max(BATCHES)))
    engine = engine_from_onnx(flavour, forms.for_engines[form], f"{form}.onnx", wanted, _Nobody())
    return open_engine(EngineFile(f"the {form} engine", engine.plan, engine.record))


class _Nobody:
    """A progress display that shows nothing."""

    def advance(self, steps: int = 1) -> None:
        return


def _as_run(runner: Runner) -> Run:
    def ran(images: Images) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = runner.run({"image": images})["logits"]
        return logits

    return ran


def _torch(forms: _Forms, form: EnginePrecision, *, compiled: bool, device: str = "cuda") -> Run:
    """Run a form in PyTorch.

    Products are in true float32; float16 uses autocast. exact uses the rounding graph, which
    computes in float32 and without cuDNN's transforms.
    """
    graph = copy.deepcopy(forms.exact if form == "exact" else forms.float32).to(available_device(device))
    module = _compiled(graph) if compiled else graph

    def ran(images: Images) -> NDArray[np.float32]:
        with _cudnn(form != "exact"), torch.inference_mode(), torch.autocast(device, torch.float16, enabled=form == "float16"):
            logits: NDArray[np.float32] = module(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return logits

    return ran


def _compiled(graph: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the compiled graph, as a yardstick for speed.

    It is not a form that is shipped, so a failure of PyTorch's compiler is not a failure of what is
    accepted.
    """
    module = torch.compile(graph)

    def ran(images: torch.Tensor) -> torch.Tensor:
        try:
            logits: torch.Tensor = module(images)
        except Exception as error:
            raise NotHereError(f"PyTorch's compiler: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        return logits

    return ran


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Switch TF32 off by the older of PyTorch's two settings.

    torch.compile reads the older one, and mixing both is an error there.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _cudnn(enabled: bool) -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _compared(forms: _Forms, contestant: Contestant, part: Part) -> bool:
    """Return whether a contestant runs with correct outputs.

    The exact form must have the bits of PyTorch on the CPU at every batch size. For the others the
    distance is recorded.
    """
    if contestant.form == "exact":
        same = part.attempt(f"{contestant.name}, compared", lambda: _same_bits(forms, contestant.run))
        if same is not None:
            part.found["same_bits_of_exact"][contestant.runtime] = same
            part.found["failed"] += [
                f"{contestant.name}, batch {size}: other bits than PyTorch on the CPU" for size, value in same.items() if not value
            ]
        return same is not None
    apart = part.attempt(f"{contestant.name}, compared", lambda: _distance(forms, contestant.run))
    if apart is not None:
        part.found["errors"][contestant.name] = apart
    return apart is not None


def _same_bits(forms: _Forms, ran: Run) -> dict[str, bool]:
    images, wanted = _images(max(BATCHES)), forms.exact_outputs.view(np.int32)
    return {str(size): bool(np.array_equal(ran(images[:size]).view(np.int32), wanted[:size])) for size in BATCHES}


def _distance(forms: _Forms, ran: Run) -> Json:
    """Return the distance from PyTorch on the CPU, next to the largest output there.

    An output that is not a number fails.
    """
    found = ran(_images(max(BATCHES)))
    if not np.isfinite(found).all():
        raise ArithmeticError("not all outputs are finite")
    return {"max_abs_from_torch_cpu": float(np.abs(found - forms.outputs).max()), "largest_output": float(np.abs(forms.outputs).max())}


def _images(number: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (number, *SHAPE), dtype=np.uint8)


def _milliseconds(ran: Run, images: Images, seconds: float) -> list[float]:
    for _ in range(WARM_UP_CALLS):
        ran(images)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < FEWEST_CALLS or time.perf_counter() < ends:
        started = time.perf_counter()
        ran(images)
        times.append(1000 * (time.perf_counter() - started))
    return times


def _spread(times: list[float], size: int) -> Mapping[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    percentile = float(np.percentile(times, 99))
    figures = {"median_ms": middle, "quartile_ms": low, "upper_quartile_ms": high, "p99_ms": percentile, "images_per_second": 1000 * size / middle}
    return {name: round(value, 4) for name, value in figures.items()} | {"calls": len(times)}


PARTS: Mapping[str, Callable[[Part, argparse.Namespace], None]] = {"bundle": _bundle, "training": _training, "speed": _speed}


if __name__ == "__main__":
    sys.exit(main())
