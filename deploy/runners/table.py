"""The runtimes that open a model file, by name. A new one is a file next to this and a line here.

Importing this imports no runtime: each does that itself, when it opens a file.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from deploy.runners.base import Runner
from deploy.runners.onnxruntime import OnnxRuntimeRunner, Optimisation
from deploy.runners.openvino import OpenVinoRunner
from deploy.runners.tensorrt import require_tensorrt
from export.errors import NotHereError, UsageError
from export.tensorrt.runtime import FLAVOURS

Choice = Literal["threads", "optimisation"]
THREADS = (1, 3)
"""Two ways to share out the work that most machines do not take by themselves."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What may be said about a run; a runtime that has no such choice ignores it and its facts say so."""

    optimisation: Optimisation = "all"
    threads: int = 0
    """0: as many as there are cores."""


@dataclass(frozen=True)
class FileRuntime:
    """A runtime on a kind of device, and how it opens a file."""

    device: str
    open: Callable[[Path, RunOptions], Runner]
    choices: tuple[Choice, ...] = ()
    """Which of the options it has; its results must not depend on them."""


@dataclass(frozen=True)
class OtherRun:
    """Options that differ from others in one choice."""

    choice: Choice
    setting: str
    """In words."""
    options: RunOptions


def _onnxruntime_cpu(path: Path, options: RunOptions) -> Runner:
    return OnnxRuntimeRunner(path, "onnxruntime-cpu", optimisation=options.optimisation, threads=options.threads)


def _onnxruntime_cuda(path: Path, options: RunOptions) -> Runner:
    return OnnxRuntimeRunner(path, "onnxruntime-cuda", optimisation=options.optimisation, threads=options.threads)


def _openvino_cpu(path: Path, options: RunOptions) -> Runner:
    return OpenVinoRunner(path, threads=options.threads)


def _onnxruntime_tensorrt(path: Path, options: RunOptions) -> Runner:
    return OnnxRuntimeRunner(path, "onnxruntime-tensorrt", optimisation=options.optimisation)


FILE_RUNTIMES = {
    "onnxruntime-cpu": FileRuntime("cpu", _onnxruntime_cpu, ("threads", "optimisation")),
    "onnxruntime-cuda": FileRuntime("cuda", _onnxruntime_cuda, ("optimisation",)),
    "openvino-cpu": FileRuntime("cpu", _openvino_cpu, ("threads",)),
    "onnxruntime-tensorrt": FileRuntime("cuda", _onnxruntime_tensorrt),
}

ENGINE_RUNTIMES = tuple(flavour.runtime for flavour in FLAVOURS.values())
"""Those that take engines built for them alone; `deploy.runners.tensorrt` opens them."""

_DEFAULTS = RunOptions()


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
        require_tensorrt(name)
    except NotHereError as error:
        raise NotHereError(f"{name} was asked for: {error}") from error


def other_runs(runtime: str, options: RunOptions) -> Iterator[OtherRun]:
    """Every way in which a runtime may run the same file that differs from `options` in one choice."""
    if "threads" in FILE_RUNTIMES[runtime].choices:
        for number in THREADS:
            if number != options.threads:
                yield OtherRun("threads", threads_in_words(number), replace(options, threads=number))
    if "optimisation" in FILE_RUNTIMES[runtime].choices:
        for level in get_args(Optimisation):
            if level != options.optimisation:
                yield OtherRun("optimisation", f"optimisation: {level}", replace(options, optimisation=level))


def threads_in_words(number: int) -> str:
    """How many threads, to be read."""
    return f"{number} thread" + ("s" if number > 1 else "")


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def open_file(runtime: str, path: Path, options: RunOptions = _DEFAULTS) -> Runner:
    """Open a model file in the runtime of that name."""
    if runtime not in FILE_RUNTIMES:
        raise UsageError(f"runtime {runtime!r} is not known; choose one of {', '.join(FILE_RUNTIMES)}")
    return FILE_RUNTIMES[runtime].open(path, options)
