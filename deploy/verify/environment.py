"""Where a check ran: versions, machine, processor. Imports no runtime to find out.

Takes nothing; returns values that JSON can hold.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

from deploy.runners.runtimes import RUNTIMES

_PACKAGES = tuple(dict.fromkeys(["samegraph", "numpy", "pillow", "onnx", *(name for row in RUNTIMES.values() for name in row.packages)]))
"""The packages that may change a result, including the runtimes' own distributions."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environment() -> dict[str, object]:
    """The facts about this machine that may change a result."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "machine": platform.machine(),
        **({"nvidia_driver": driver} if (driver := nvidia_driver()) else {}),
        **({"nvidia_gpus": gpus} if (gpus := nvidia_gpus()) else {}),
        "system": f"{platform.system()} {platform.release()}",
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name that the processor states."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def nvidia_driver(version: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The kernel's driver for NVIDIA GPUs, by its own name. None if there is none."""
    return version.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip() if version.is_file() else None


def nvidia_gpus(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The models of the NVIDIA GPUs, by the names that the kernel's driver gives them."""
    told = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.glob("*/information"))]
    lines = [line for text in told for line in text.splitlines() if line.startswith("Model:")]
    return [line.partition(":")[2].strip() for line in lines]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
