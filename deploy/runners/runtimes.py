"""The runtimes, by name: one literal row each. A new one is a file next to this and a row here; all that asks which there are reads this table.

Importing this imports no runtime: each does that itself, when it opens a file.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from deploy.runners import onnxruntime, openvino, tensorrt
from deploy.runners.onnxruntime import Optimisation
from deploy.runners.runner import Finding, Runner
from export.errors import NotHereError, UsageError
from export.tensorrt.runtime import FLAVOURS

Choice = Literal["layout", "threads", "optimisation"]
Reads = Literal["graph", "plain file", "signed file", "engine"]
THREADS = (1, 3)
"""Two ways to share out the work that most machines do not take by themselves."""
TORCH = "torch"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What may be said about a run; a runtime that has no such choice ignores it and its facts say so."""

    optimisation: Optimisation = "all"
    threads: int = 0
    """0: as many as there are cores."""
    channels_last: bool = False
    """Images and filters in that memory layout."""


AS_IT_IS = RunOptions()
"""All optimisations, all cores, the usual layout."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime on a kind of device."""

    device: Literal["cpu", "cuda"]
    reads: Reads
    """Which form of a model it takes. ONNX Runtime's kernels for NVIDIA's GPUs take no padded bytes and no int32 bias, TensorRT no unsigned
    bytes: of an exact model they read the signed file, whose layers compute in float32."""
    choices: tuple[Choice, ...] = ()
    """What can be said about a run; its results must not depend on it."""
    packages: tuple[str, ...]
    """The distributions whose versions a verdict records."""
    remedy: str
    """How to get it."""
    probe: Callable[[], Finding] | None = None
    """Tries it, in a process of its own; see `probe.py`. None where another finding answers for it."""
    open: Callable[[Path, RunOptions], Runner] | None = None
    """Opens a model file; None where it takes something else."""


def _onnxruntime(provider: onnxruntime.ProviderName, path: Path, options: RunOptions) -> Runner:
    return onnxruntime.OnnxRuntimeRunner(path, provider, optimisation=options.optimisation, threads=options.threads)


def _openvino(path: Path, options: RunOptions) -> Runner:
    return openvino.OpenVinoRunner(path, threads=options.threads)


RUNTIMES: dict[str, Runtime] = {
    TORCH: Runtime(
        device="cpu",
        reads="graph",
        choices=("layout", "threads"),
        packages=("torch",),
        remedy="pip install 'samegraph[train]'",
    ),
    "onnxruntime-cpu": Runtime(
        device="cpu",
        reads="plain file",
        choices=("threads", "optimisation"),
        packages=("onnxruntime", "onnxruntime-gpu"),
        remedy="pip install onnxruntime-gpu, which serves CPUs too",
        probe=partial(onnxruntime.probe, "onnxruntime-cpu"),
        open=partial(_onnxruntime, "onnxruntime-cpu"),
    ),
    "onnxruntime-cuda": Runtime(
        device="cuda",
        reads="signed file",
        choices=("optimisation",),
        packages=("onnxruntime", "onnxruntime-gpu"),
        remedy="pip install onnxruntime-gpu and nothing else of ONNX Runtime, on a machine with an NVIDIA GPU",
        probe=partial(onnxruntime.probe, "onnxruntime-cuda"),
        open=partial(_onnxruntime, "onnxruntime-cuda"),
    ),
    "onnxruntime-tensorrt": Runtime(
        device="cuda",
        reads="signed file",
        packages=("onnxruntime", "onnxruntime-gpu"),
        remedy="the same as for onnxruntime-cuda, and libraries of the TensorRT that it was built for on LD_LIBRARY_PATH",
        probe=partial(onnxruntime.probe, "onnxruntime-tensorrt"),
        open=partial(_onnxruntime, "onnxruntime-tensorrt"),
    ),
    "openvino-cpu": Runtime(
        device="cpu",
        reads="plain file",
        choices=("threads",),
        packages=("openvino",),
        remedy="pip install 'samegraph[openvino]'",
        probe=openvino.probe,
        open=_openvino,
    ),
    "tensorrt": Runtime(
        device="cuda",
        reads="engine",
        packages=("tensorrt",),
        remedy="pip install 'samegraph[tensorrt]', on a machine with an NVIDIA GPU",
        probe=partial(tensorrt.probe, FLAVOURS["tensorrt"]),
    ),
    "tensorrt-rtx": Runtime(
        device="cuda",
        reads="engine",
        packages=("tensorrt-rtx",),
        remedy="pip install tensorrt-rtx, on an NVIDIA GPU of compute capability 7.5, 8.x or 12.x",
        probe=partial(tensorrt.probe, FLAVOURS["rtx"]),
    ),
}

FILE_RUNTIMES = tuple(name for name, runtime in RUNTIMES.items() if runtime.open is not None)
"""Those that open a model file."""
ENGINE_RUNTIMES = tuple(name for name, runtime in RUNTIMES.items() if runtime.reads == "engine")
"""Those that take engines built for them alone; `deploy.runners.tensorrt` opens them."""


@dataclass(frozen=True)
class OtherRun:
    """Options that differ from others in one choice."""

    choice: Choice
    setting: str
    """In words."""
    options: RunOptions


def other_runs(choices: Iterable[Choice], options: RunOptions) -> Iterator[OtherRun]:
    """Every way of running that differs from `options` in one of the choices."""
    for choice in choices:
        match choice:
            case "layout":
                yield OtherRun(choice, "channels last", replace(options, channels_last=True))
            case "threads":
                for number in THREADS:
                    if number != options.threads:
                        yield OtherRun(choice, threads_in_words(number), replace(options, threads=number))
            case "optimisation":
                for level in get_args(Optimisation):
                    if level != options.optimisation:
                        yield OtherRun(choice, f"optimisation: {level}", replace(options, optimisation=level))


def threads_in_words(number: int) -> str:
    """How many threads, to be read."""
    return f"{number} thread" + ("s" if number > 1 else "")


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported to find out."""
    return importlib.util.find_spec(TORCH) is not None


def require_torch(what: str) -> None:
    """NotHereError where PyTorch is not installed; `what` needs it."""
    if not has_torch():
        raise NotHereError(f"{what} needs PyTorch, which is not installed; {RUNTIMES[TORCH].remedy}")


def open_file(runtime: str, path: Path, options: RunOptions = AS_IT_IS) -> Runner:
    """Open a model file in the runtime of that name."""
    opener = RUNTIMES[runtime].open if runtime in RUNTIMES else None
    if opener is None:
        raise UsageError(f"runtime {runtime!r} is not known; choose one of {', '.join(FILE_RUNTIMES)}")
    return opener(path, options)


def require_runtimes(names: Iterable[str]) -> None:
    """Raise NotHereError for the first of these that cannot run here; found out by opening a model of one node, or by what an engine needs."""
    for name in names:
        if name in ENGINE_RUNTIMES:
            _require_engine_runtime(name)
            continue
        if name not in FILE_RUNTIMES:
            known = ", ".join((*FILE_RUNTIMES, *ENGINE_RUNTIMES))
            raise NotHereError(f"runtime {name!r} was asked for, this version runs {known}; ask for one of these")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(_smallest_model())
            open_file(name, path).close()


def _require_engine_runtime(name: str) -> None:
    try:
        tensorrt.require_tensorrt(name)
    except NotHereError as error:
        raise NotHereError(f"{name} was asked for: {error}") from error


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
