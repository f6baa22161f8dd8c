"""The two TensorRTs: the full one, and TensorRT-RTX, which builds without a GPU and compiles on the machine that runs.

Importing this imports neither of them. What differs between them is said here and nowhere else.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from export.errors import NotHereError, UsageError

FlavourName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Flavour:
    """One of the two, and what it can do."""

    name: FlavourName
    module: str
    runtime: str
    """What a verdict calls it, and `--require` takes."""
    least_version: tuple[int, int]
    magic: bytes
    """How its plans begin. That of the full one is known from its own error messages, not from a plan that was seen."""
    times_tactics: bool
    """Whether it builds by timing kernels on a GPU: then it needs one, and a timing cache makes builds repeatable."""
    capabilities: frozenset[str] | None
    """The GPUs it runs on; None: all that its release notes name, which are more than can be listed here."""
    compiles_where_it_runs: bool
    """Whether kernels are compiled on the machine that runs: then an engine serves every GPU in `capabilities`, not only the type it was built on."""
    remedy: str

    def load(self) -> ModuleType:
        """Its Python module; NotHereError where it cannot be imported or is too old."""
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: its libraries are not there
            raise NotHereError(f"{self.runtime} cannot be imported ({_line(error)}); {self.remedy}") from error
        version = str(module.__version__)
        if tuple(int(part) for part in version.split(".")[:2]) < self.least_version:
            least = ".".join(map(str, self.least_version))
            raise NotHereError(f"{self.runtime} {version} is here, at least {least} is needed; {self.remedy}")
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
    raise UsageError(f"{runtime!r} is no TensorRT; choose one of {', '.join(each.runtime for each in FLAVOURS.values())}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
