"""The NVIDIA GPU of this machine, as far as an engine depends on it.

Asks the CUDA runtime through cuda-bindings, which torch's wheels for CUDA bring. Computes nothing on the GPU.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from export.errors import NotHereError

REMEDY = "use a machine with an NVIDIA GPU and its driver"
MORE_MEMORY = "free memory of the GPU, or build with a smaller export.batch.max"
_OUT_OF_MEMORY, _NO_GPU = 2, frozenset({35, 100})
"""cudaErrorMemoryAllocation; cudaErrorInsufficientDriver, which also stands for no driver, and cudaErrorNoDevice."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and the driver it runs under."""

    name: str
    capability: str
    """Such as 9.0."""
    memory: int
    """In bytes."""
    driver: str
    cuda: str
    """The newest CUDA that the driver takes."""


def gpu_here(index: int = 0) -> Gpu:
    """The GPU of that number; NotHereError where there is none, or no driver for it."""
    cuda = cuda_runtime()
    number: int = checked(cuda, "cudaGetDeviceCount")
    if index >= number:
        raise NotHereError(f"GPU {index} was asked for, {number} are here, counted from 0; {REMEDY}")
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
    """Call a function of the CUDA runtime; NotHereError, with CUDA's own words, where it fails."""
    status, *results = getattr(cuda, function)(*arguments)
    if int(status) != 0:
        _, words = cuda.cudaGetErrorString(status)
        if int(status) in _NO_GPU:
            raise NotHereError(f"no NVIDIA GPU is here (CUDA: {_text(words)}); {REMEDY}")
        remedy = MORE_MEMORY if int(status) == _OUT_OF_MEMORY else REMEDY
        raise NotHereError(f"{function} of CUDA fails: {_text(words)}; {remedy}")
    return results[0] if len(results) == 1 else tuple(results)


def _driver() -> str:
    """A note for the record; not knowing it is no reason to fail, whatever the reason was."""
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
