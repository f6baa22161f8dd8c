"""The TensorRT on this machine: its flavours, the GPU, and the messages of its logger.

It is imported lazily and without torch. If it is missing, a NotHereError names the remedy.
"""

import functools
import importlib
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from export.errors import NotHereError, UsageError

_KEPT = 1000
_LONGEST = 400
_NOISE = re.compile(r"catchCudaError|^ModelImporter\.cpp:\d+: (While parsing|---)")
"""Said along with every other error where there is no GPU, or part of a longer message."""
_PLACE = re.compile(r"\s*In \w[^()]* at /_src/\S+:\d+\)?")
"""The place in NVIDIA's sources where it happened."""


class Messages:
    """The messages of one piece of work."""

    def __init__(self) -> None:
        self._said: deque[tuple[str, str]] = deque(maxlen=_KEPT)

    def add(self, severity: str, text: str) -> None:
        self._said.append((severity, text))

    @property
    def warnings(self) -> list[str]:
        return self._of("WARNING")

    @property
    def errors(self) -> list[str]:
        """Errors, without those that only accompany others."""
        found = self._of("ERROR", "INTERNAL_ERROR")
        return [text for text in found if not _NOISE.search(text)] or found

    def __str__(self) -> str:
        """All errors on one line, or all warnings of a failure without errors."""
        line = "; ".join(self.errors or self.warnings) or "no reason given"
        return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."

    def _of(self, *severities: str) -> list[str]:
        texts = (" ".join(_PLACE.sub("", text).split()) for severity, text in self._said if severity in severities)
        return list(dict.fromkeys(texts))


@contextmanager
def listening(module: ModuleType) -> Iterator[Messages]:
    """Collect what a TensorRT says while this lasts."""
    logger, heard = logger_of(module), Messages()
    logger.listeners.append(heard)
    try:
        yield heard
    finally:
        logger.listeners.remove(heard)


@functools.cache
def logger_of(module: ModuleType) -> Any:
    """The one logger of this module, for everything in it that wants one."""
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]  # the class is known once the module is loaded
        def __init__(self) -> None:
            base.__init__(self)
            self.listeners: list[Messages] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name not in ("INFO", "VERBOSE"):
                for listener in tuple(self.listeners):
                    listener.add(severity.name, text)

    return Logger()


REMEDY = "use a machine with an NVIDIA GPU and its driver"
MORE_MEMORY = "free memory of the GPU, or build with a smaller export.batch.max"
_OUT_OF_MEMORY, _NO_GPU = 2, frozenset({35, 100})
"""Numbers of CUDA errors.

2 is cudaErrorMemoryAllocation. 35 is cudaErrorInsufficientDriver, which also stands for no driver.
100 is cudaErrorNoDevice.
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU and its driver."""

    name: str
    capability: str
    """For example 9.0."""
    memory: int
    """In bytes."""
    driver: str
    cuda: str
    """The newest version of CUDA that the driver supports."""


def gpu_here(index: int = 0) -> Gpu:
    """The GPU with this number. NotHereError if it or its driver is missing."""
    cuda = cuda_runtime()
    number: int = checked(cuda, "cudaGetDeviceCount")
    if index >= number:
        raise NotHereError(f"GPU {index} was requested, but {number} are available, counted from 0; {REMEDY}")
    found = checked(cuda, "cudaGetDeviceProperties", index)
    return Gpu(
        name=_text(found.name),
        capability=f"{found.major}.{found.minor}",
        memory=int(found.totalGlobalMem),
        driver=_driver(),
        cuda=_version(checked(cuda, "cudaDriverGetVersion")),
    )


def cuda_runtime() -> Any:
    """The module with the functions of the CUDA runtime."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise NotHereError(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from error


def checked(cuda: Any, function: str, *arguments: object) -> Any:
    """Call a function of the CUDA runtime. If it fails, NotHereError quotes CUDA's own words."""
    status, *results = getattr(cuda, function)(*arguments)
    if int(status) != 0:
        _, words = cuda.cudaGetErrorString(status)
        if int(status) in _NO_GPU:
            raise NotHereError(f"no NVIDIA GPU is available (CUDA: {_text(words)}); {REMEDY}")
        remedy = MORE_MEMORY if int(status) == _OUT_OF_MEMORY else REMEDY
        raise NotHereError(f"{function} of CUDA fails: {_text(words)}; {remedy}")
    return results[0] if len(results) == 1 else tuple(results)


def _driver() -> str:
    """The driver's version, as a note for the record. Not knowing it is never a reason to fail."""
    try:
        nvml: Any = importlib.import_module("cuda.bindings.nvml")
        nvml.init_v2()
        return _text(nvml.system_get_driver_version())
    except Exception as error:
        return f"unknown ({type(error).__name__})"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: object) -> str:
    return value.split(b"\0")[0].decode(errors="replace") if isinstance(value, bytes) else str(value)


FlavourName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs, and what it can do."""

    name: FlavourName
    module: str
    runtime: str
    """The name in a verdict and for `--require`."""
    least_version: tuple[int, int]
    magic: bytes
    """How its plans begin. For the full TensorRT this is known only from its error messages."""
    times_tactics: bool
    """Whether it builds by timing kernels on a GPU.

    Then it needs a GPU, and a timing cache makes its builds repeatable.
    """
    capabilities: frozenset[str] | None
    """The GPUs it runs on. None: all that its release notes name, which are too many to list."""
    compiles_where_it_runs: bool
    """Whether kernels are compiled on the machine that runs them.

    Then an engine serves every GPU in `capabilities`, not only the type it was built on.
    """
    remedy: str

    def load(self) -> ModuleType:
        """Its Python module; NotHereError where it cannot be imported or is too old."""
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: its libraries are missing
            raise NotHereError(f"{self.runtime} cannot be imported ({_line(error)}); {self.remedy}") from error
        version = str(module.__version__)
        if tuple(int(part) for part in version.split(".")[:2]) < self.least_version:
            least = ".".join(map(str, self.least_version))
            raise NotHereError(f"{self.runtime} {version} is installed, at least {least} is needed; {self.remedy}")
        return module


FLAVOURS: dict[FlavourName, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        module="tensorrt",
        runtime="tensorrt",
        least_version=(11, 0),
        magic=b"ftrt",
        times_tactics=True,
        capabilities=None,
        compiles_where_it_runs=False,
        remedy="pip install 'samegraph[tensorrt]', on a machine with an NVIDIA GPU",
    ),
    "rtx": Flavour(
        name="rtx",
        module="tensorrt_rtx",
        runtime="tensorrt-rtx",
        least_version=(1, 7),
        magic=b"vtrt",
        times_tactics=False,
        capabilities=frozenset({"8.0", "8.6", "8.9", "12.0", "12.1"}),
        compiles_where_it_runs=True,
        remedy="pip install 'tensorrt-rtx>=1.7'",
    ),
}


def flavour_of_runtime(runtime: str) -> Flavour:
    """The flavour that a verdict calls by this name."""
    for flavour in FLAVOURS.values():
        if flavour.runtime == runtime:
            return flavour
    raise UsageError(f"{runtime!r} is not a TensorRT; choose one of {', '.join(each.runtime for each in FLAVOURS.values())}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
