"""The runtimes by name, one literal row each. Whatever needs a list of them reads this table.

A new runtime is a file next to this one and a row here. Importing this module imports no runtime:
each does that itself when it opens a file.
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
"""Two ways of sharing out the work that most machines do not choose by themselves."""
TORCH = "torch"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run. A runtime without such a choice ignores it, and its facts say so."""

    optimisation: Optimisation = "all"
    threads: int = 0
    """0 means as many as there are cores."""
    channels_last: bool = False
    """Whether images and filters are in that memory layout."""


AS_IT_IS = RunOptions()
"""All optimisations, all cores, the usual layout."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime on a kind of device."""

    device: Literal["cpu", "cuda"]
    reads: Reads
    """The form of a model that it takes.

    ONNX Runtime's kernels for NVIDIA's GPUs take no padded bytes and no int32 bias; TensorRT takes
    no unsigned bytes. Of an exact model they read the signed file, whose layers compute in float32.
    """
    choices: tuple[Choice, ...] = ()
    """What can be varied in a run. The results must not depend on it."""
    packages: tuple[str, ...]
    """The distributions whose versions a verdict records."""
    remedy: str
    """How to install it."""
    probe: Callable[[], Finding] | None = None
    """Tries it, in a process of its own (see `probe.py`). None if another finding covers it."""
    open: Callable[[Path, RunOptions], Runner] | None = None
    """Opens a model file. None if it takes something else."""


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
"""The runtimes that open a model file."""
ENGINE_RUNTIMES = tuple(name for name, runtime in RUNTIMES.items() if runtime.reads == "engine")
"""The runtimes that take engines built for them alone; `deploy.runners.tensorrt` opens these."""


@dataclass(frozen=True)
class OtherRun:
    """Options that differ from others in one choice."""

    choice: Choice
    setting: str
    """The setting in words."""
    options: RunOptions


def other_runs(choices: Iterable[Choice], options: RunOptions) -> Iterator[OtherRun]:
    """Every way to run that differs from `options` in one of the choices."""
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
    """The number of threads in words."""
    return f"{number} thread" + ("s" if number > 1 else "")


def has_torch() -> bool:
    """Whether PyTorch is installed. It is not imported to find out."""
    return importlib.util.find_spec(TORCH) is not None


def require_torch(what: str) -> None:
    """Raise NotHereError if PyTorch, which `what` needs, is not installed."""
    if not has_torch():
        raise NotHereError(f"{what} needs PyTorch, which is not installed; {RUNTIMES[TORCH].remedy}")


def open_file(runtime: str, path: Path, options: RunOptions = AS_IT_IS) -> Runner:
    """Open a model file in the runtime of that name."""
    opener = RUNTIMES[runtime].open if runtime in RUNTIMES else None
    if opener is None:
        raise UsageError(f"runtime {runtime!r} is not known; choose one of {', '.join(FILE_RUNTIMES)}")
    return opener(path, options)


def require_runtimes(names: Iterable[str]) -> None:
    """Raise NotHereError for the first of these that cannot run here.

    To find out, a model of one node is opened, or the requirements of an engine are checked.
    """
    for name in names:
        if name in ENGINE_RUNTIMES:
            _require_engine_runtime(name)
            continue
        if name not in FILE_RUNTIMES:
            known = ", ".join((*FILE_RUNTIMES, *ENGINE_RUNTIMES))
            raise NotHereError(f"runtime {name!r} was requested, but this version runs {known}; choose one of these")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(_smallest_model())
            open_file(name, path).close()


def _require_engine_runtime(name: str) -> None:
    try:
        tensorrt.require_tensorrt(name)
    except NotHereError as error:
        raise NotHereError(f"{name} was requested: {error}") from error


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
