"""What a user requests of a verification: which forms, on which samples, and what must hold.

Plain frozen data; needs no torch. What is requested of a bundle and of a pair differs only in what is compared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.compare.tolerance import Tolerance
from deploy.runners.runner import Precision
from deploy.sandbox.process import Limits

BITWISE = "bitwise"
"""The word that stands among required runtimes on the command line and requires every bit instead."""


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What every verification can be told."""

    samples: str | None = None
    """A file, a folder of files, or a number of random samples; see `deploy.compare.inputs`. None: what the forms bring along."""
    require: tuple[str, ...] = ()
    """Runtimes without which there is no verdict."""
    bitwise: bool = False
    """Whether every bit must be equal, whatever a budget would allow."""
    only: str | None = None
    """The one link that is checked."""
    inside: bool = False
    """Whether the errors at inner tensors are measured too."""


@dataclass(frozen=True, kw_only=True)
class BundleRequest(VerifyRequest):
    """A bundle's own chain."""

    folder: Path
    network: str | None = None
    """Code of the user's own that may build the network; a bundle alone names no code to import."""


@dataclass(frozen=True, kw_only=True)
class PairRequest(VerifyRequest):
    """Two forms of a model that must be the same function. Two recordings need no samples."""

    reference: Path
    candidate: Path
    names: Mapping[str, str] = field(default_factory=dict)
    """The reference's names of inputs and outputs, and the candidate's, where they differ."""
    runtimes: tuple[str, ...] = ("onnxruntime-cpu",)
    """What an ONNX candidate is run in."""
    tolerance: Tolerance | None = None
    precision: Precision | None = None
    """What was asked of the candidate; as of the reference where that is None, whatever types the file holds."""
    batch_size: int = 64
    sizes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    batched: bool = True
    limits: Limits = field(default_factory=Limits)


def runtimes_among(required: Iterable[str]) -> tuple[str, ...]:
    """What was required, without the word that stands for bits."""
    return tuple(name for name in required if name != BITWISE)
