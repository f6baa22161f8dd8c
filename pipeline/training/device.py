"""Which device computes, in which precision, with which algorithms.

Takes names from the config. Knows no training.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from export.errors import NotHereError, UsageError

SMALLEST_IMAGE_FOR_BFLOAT16 = 16
"""Below this width a step is so short that converting to bfloat16 costs more than it saves."""
SMALLEST_IMAGE_FOR_THREADS = 16
_CPU_FEATURES_FOR_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def device_by_name(name: str) -> torch.device:
    """Return the device of a `training.device` entry: auto, cpu, cuda or cuda:N."""
    if name == "auto":
        return _cuda(0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (name != "cuda" and not number.isdecimal()):
        raise UsageError(f"training.device: unknown device {name!r}; expected auto, cpu, cuda or cuda:N")
    return _cuda(int(number or 0))


def _cuda(number: int) -> torch.device:
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= num_devices:
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(num_devices))])
        raise NotHereError(f"training.device: cuda:{number} is not on this machine, which has {here}; choose one of these, or auto")
    return torch.device("cuda", number)


def autocast_type(precision: Literal["auto", "float32", "bfloat16"], device: torch.device, image_width: int) -> torch.dtype | None:
    """Return the type to autocast to; None is float32 throughout."""
    helps = image_width >= SMALLEST_IMAGE_FOR_BFLOAT16 and _computes_in_bfloat16(device)
    wanted = helps if precision == "auto" else precision == "bfloat16"
    return torch.bfloat16 if wanted else None


@contextmanager
def cpu_threads(threads: Literal["auto"] | int, image_width: int) -> Iterator[None]:
    """Use the requested number of CPU threads.

    auto uses one thread where a step is so short that distributing its parts costs more than
    computing them.
    """
    before = torch.get_num_threads()
    chosen = (1 if image_width < SMALLEST_IMAGE_FOR_THREADS else before) if threads == "auto" else threads
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in _CPU_FEATURES_FOR_BFLOAT16)


@contextmanager
def arithmetic(*, deterministic: bool) -> Iterator[None]:
    """Keep float32 at full precision (no TF32), and choose between fast and repeatable algorithms.

    `deterministic` selects algorithms that repeat, where they exist.
    """
    cudnn, product = torch.backends.cudnn, torch.backends.cuda.matmul
    convolution = cudnn.conv  # type: ignore[attr-defined]  # torch adds it at import
    before = (cudnn.benchmark, cudnn.deterministic, convolution.fp32_precision, product.fp32_precision)
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only if its workspace has a fixed size
        torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
    convolution.fp32_precision = product.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, convolution.fp32_precision, product.fp32_precision = before
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak, so that a run does not report that of an earlier run in the same process.

    This is not possible on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes.

    On CUDA it is the most that tensors held at once, on a CPU the largest size of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
