"""To be run once on a machine with an NVIDIA GPU and TensorRT: builds engines, verifies every link, measures, and writes one result file.

    python -m benchmarks.gpu_acceptance [--network resnet18] [--rounds 5] [--seconds 1] [--epochs 10] [--parts bundle speed] [--out FILE]

Two parts. `bundle`: a network is trained on the built-in digits, exported, given engines in float32, float16 and exact, and verified from its
files; every link and every check of an engine is in the result, with the reason where one did not run. `speed`: the named network on 3 x 32 x 32
images with initial weights, from host memory to host memory, in every form and runtime that is here; the exact form's outputs are compared to
the bit on the way. What is not here is said and not measured. Ends with 0 where all that ran holds, with 3 where not; "complete" in the result
is true only where everything ran.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from benchmarks.environment import RESULTS, environment
from deploy.runners.base import Runner
from deploy.runners.table import open_file
from deploy.runners.tensorrt import EngineFile, open_engine
from export.bundle import json_bytes
from export.engines.flavour import FLAVOURS, Flavour
from export.engines.gpu import gpu_here
from export.engines.record import EnginePrecision
from export.errors import NotHereError
from export.exact.calibration import calibrate
from export.exact.onnx import exact_onnx, exact_tensorrt_onnx
from export.exact.rewrite import GridBits, grid_graph
from export.files import write_file
from export.fold import fold
from export.onnx import onnx_from_graph
from export.tensorrt.builder import Batches, Wanted, engine_from_onnx
from export.tensorrt.float16 import float16_onnx
from pipeline import run
from pipeline.assemble import ImageFacts, training_graph
from pipeline.cli.console import Console
from pipeline.config import load_config, parse_config
from pipeline.engine_stage import export_engines
from pipeline.engines import EngineOptions

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SHAPE, NUM_CLASSES = (3, 32, 32), 10
BATCHES = (1, 8, 64, 256)
FORMS: tuple[EnginePrecision, ...] = ("float32", "float16", "exact")
FEWEST_CALLS, WARM_UP_CALLS = 5, 3

Images = NDArray[np.uint8]
Run = Callable[[Images], NDArray[np.float32]]
Json = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a measurement takes at least, shared out over the rounds")
    parser.add_argument("--epochs", type=int, default=10, help="of training on the digits")
    parser.add_argument("--parts", nargs="+", choices=["bundle", "speed"], default=["bundle", "speed"])
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_acceptance.json")
    options = parser.parse_args()
    todo = {"bundle": lambda: _bundle(options.epochs), "speed": lambda: _speed(options.network, options.rounds, options.seconds)}
    parts = {name: todo[name]() for name in options.parts}
    missing = sorted({reason for part in parts.values() for reason in part["not_run"].values()})
    failed = [name for part in parts.values() for name in part["failed"]]
    result: Json = {
        "environment": environment(),
        "gpu": _gpu(),
        "tensorrt": _versions(),
        "complete": not missing and len(parts) == len(todo),
        "failed": failed,
        **parts,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.out, json_bytes(result))
    for reason in missing:
        print(f"not run: {reason}")
    print(f"{_ending(failed, parts)}; {options.out}")
    return 3 if failed else 0


def _ending(failed: list[str], parts: Mapping[str, Json]) -> str:
    if failed:
        return f"FAILED: {', '.join(failed)}"
    ran = any(part.get("measured") or part.get("flavours") for part in parts.values())
    return "all that ran holds" if ran else "nothing could be run or measured here"


def _gpu() -> JsonValue:
    try:
        return dict(vars(gpu_here()))
    except NotHereError as error:
        return f"not here: {error}"


def _versions() -> JsonValue:
    found: dict[str, JsonValue] = {}
    for flavour in FLAVOURS.values():
        try:
            found[flavour.runtime] = str(flavour.load().__version__)
        except NotHereError as error:
            found[flavour.runtime] = f"not here: {error}"
    return found


def _bundle(epochs: int) -> Json:
    """Train, export, build with each flavour that is here, verify."""
    overrides = (f"training.epochs={epochs}", "training.schedule={name: cosine}", "export.tensorrt=false")
    part: Json = {"epochs": epochs, "flavours": {}, "failed": [], "not_run": {}}
    with tempfile.TemporaryDirectory() as folder:
        place, console = Path(folder) / "run", Console()
        run.train_export(load_config(QUICKSTART, overrides), place, None, (), console).raise_failure()
        for flavour in FLAVOURS.values():
            try:
                options = EngineOptions(flavour=flavour.name, precisions=FORMS)
                outcome = export_engines(place / "bundle", options, None, (), console)
            except NotHereError as error:
                part["not_run"][f"engines of {flavour.runtime}"] = str(error)
                continue
            part["flavours"][flavour.runtime] = {"engines": outcome.facts["engines"], **_judged(outcome.facts["verification"], flavour, part)}
            if outcome.failure is not None:
                part["failed"].append(f"{flavour.runtime}: {outcome.failure}")
    return part


def _judged(verification: Any, flavour: Flavour, part: Json) -> Json:
    """The links and checks in short; those that did not run are noted."""
    kept = ("from", "to", "runtime", "required", "observed", "status", "reason", "samples", "max_ulp", "max_abs", "budget", "top1_changes", "ties")
    links = [{name: link[name] for name in kept} for link in verification["links"]]
    for link in links:
        if link["status"] == "not run":
            part["not_run"][f"{flavour.runtime}: {link['from']} -> {link['to']}"] = link["reason"]
    checks = [check for check in verification["invariance"] if check["stage"].startswith("engine ")]
    return {"verdict": verification["verdict"], "links": links, "checks_of_engines": checks}


@dataclass(frozen=True)
class Contestant:
    """A form of the network in a runtime."""

    form: EnginePrecision
    runtime: str
    run: Run

    @property
    def name(self) -> str:
        return f"{self.form}, {self.runtime}"


def _speed(network: str, num_rounds: int, seconds: float) -> Json:
    """Every contestant at every batch size, in interleaved rounds."""
    part: Json = {"network": network, "images": "3 x 32 x 32", "rounds": num_rounds, "measured": {}, "failed": [], "not_run": {}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        forms = _Forms(network, Path(folder))
        contestants = list(_contestants(forms, held, part))
        part["same_bits_of_exact"] = _compared(forms, contestants, part)
        times: dict[str, dict[int, list[float]]] = {each.name: {size: [] for size in BATCHES} for each in contestants}
        for _ in range(num_rounds):
            for size in BATCHES:
                for each in contestants:
                    times[each.name][size] += _milliseconds(each.run, _images(size), seconds / num_rounds)
        part["measured"] = {name: {str(size): _spread(found, size) for size, found in sizes.items()} for name, sizes in times.items()}
    return part


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
        contents = {"float32": plain, "float16": self.for_engines["float16"], "exact": exact_onnx(grid, SHAPE, NUM_CLASSES, {})}
        self.files = {form: folder / f"{form}.onnx" for form in contents}
        for form, content in contents.items():
            self.files[form].write_bytes(content)


def _contestants(forms: _Forms, held: ExitStack, part: Json) -> Iterator[Contestant]:
    for form in FORMS:
        makers: dict[str, Callable[[], Run]] = {
            **{name: partial(_in_onnxruntime, name, forms, form, held) for name in ("onnxruntime-cuda", "onnxruntime-tensorrt")},
            "torch": partial(_torch, forms, form, compiled=False),
            "torch, compiled": partial(_torch, forms, form, compiled=True),
            **{flavour.runtime: partial(_in_tensorrt, flavour, forms, form, held) for flavour in FLAVOURS.values()},
        }
        for runtime, make in makers.items():
            try:
                yield Contestant(form, runtime, make())
            except NotHereError as error:
                part["not_run"][f"{form}, {runtime}"] = str(error)


def _in_onnxruntime(runtime: str, forms: _Forms, form: EnginePrecision, held: ExitStack) -> Run:
    return _as_run(held.enter_context(open_file(runtime, forms.files[form])))


def _in_tensorrt(flavour: Flavour, forms: _Forms, form: EnginePrecision, held: ExitStack) -> Run:
    return _as_run(held.enter_context(_engine(forms, form, flavour)))


def _engine(forms: _Forms, form: EnginePrecision, flavour: Flavour) -> Runner:
    wanted = Wanted(precision=form, batches=Batches(1, 64, max(BATCHES)))
    engine = engine_from_onnx(flavour, forms.for_engines[form], f"{form}.onnx", wanted, _Nobody())
    return open_engine(EngineFile(f"the {form} engine", engine.plan, engine.record))


class _Nobody:
    """Watches no build."""

    def advance(self, steps: int = 1) -> None:
        return


def _as_run(runner: Runner) -> Run:
    def ran(images: Images) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = runner.run({"image": images})["logits"]
        return logits

    return ran


def _torch(forms: _Forms, form: EnginePrecision, *, compiled: bool) -> Run:
    """True float32 products; float16 by autocast; exact by the rounding graph, which computes in float32."""
    if not torch.cuda.is_available():
        raise NotHereError(f"torch {torch.__version__} finds no CUDA device")
    graph = copy.deepcopy(forms.exact if form == "exact" else forms.float32).cuda()
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    module = torch.compile(graph) if compiled else graph

    def ran(images: Images) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=form == "float16"):
            logits: NDArray[np.float32] = module(torch.from_numpy(images).cuda()).float().cpu().numpy()
        return logits

    return ran


def _compared(forms: _Forms, contestants: list[Contestant], part: Json) -> Json:
    """The exact form everywhere, at every batch size, against PyTorch on the CPU."""
    found: Json = {}
    images = _images(max(BATCHES))
    with torch.inference_mode():
        wanted = forms.exact(torch.from_numpy(images)).numpy()
    for each in contestants:
        if each.form == "exact":
            same = {size: bool(np.array_equal(each.run(images[:size]).view(np.int32), wanted[:size].view(np.int32))) for size in BATCHES}
            found[each.runtime] = {str(size): value for size, value in same.items()}
            part["failed"] += [
                f"exact, {each.runtime}, batch {size}: other bits than PyTorch on the CPU" for size, value in same.items() if not value
            ]
    return found


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


if __name__ == "__main__":
    sys.exit(main())
