"""What a user requests of a verification: which forms, on which samples, and what must hold.

Plain frozen data; needs no torch. Requests for a bundle and for a pair differ only in what is
compared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.compare.tolerance import Tolerance
from deploy.runners.runner import Precision
from deploy.sandbox.process import Limits

BITWISE = "bitwise"
"""The word that, among required runtimes on the command line, requires every bit instead."""


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """The options of every verification."""

    samples: str | None = None
    """A file, a folder of files, or a number of random samples; see `deploy.compare.inputs`.

    None means the samples that come with the forms.
    """
    require: tuple[str, ...] = ()
    """Runtimes without which there is no verdict."""
    bitwise: bool = False
    """Whether every bit must be equal, whatever a budget would allow."""
    only: str | None = None
    """The one link to check."""
    inside: bool = False
    """Whether to measure the errors at inner tensors too."""


@dataclass(frozen=True, kw_only=True)
class BundleRequest(VerifyRequest):
    """A bundle's own chain."""

    folder: Path
    network: str | None = None
    """The user's own code that may build the network. A bundle alone names no code to import."""

    @property
    def subject(self) -> dict[str, str]:
        """What is verified, by its kind."""
        return {"bundle": str(self.folder)}


@dataclass(frozen=True, kw_only=True)
class PairRequest(VerifyRequest):
    """Two forms of a model that must be the same function. Two recordings need no samples."""

    reference: Path
    candidate: Path
    names: Mapping[str, str] = field(default_factory=dict)
    """From the reference's names of inputs and outputs to the candidate's, where they differ."""
    runtimes: tuple[str, ...] = ("onnxruntime-cpu",)
    """The runtimes that an ONNX candidate runs in."""
    tolerance: Tolerance | None = None
    precision: Precision | None = None
    """The precision that is requested of the candidate, whatever types its file holds.

    None means that of the reference.
    """
    batch_size: int = 64
    sizes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    batched: bool = True
    limits: Limits = field(default_factory=Limits)

    @property
    def subject(self) -> dict[str, str]:
        """What is verified, by its kind."""
        return {"reference": str(self.reference), "candidate": str(self.candidate)}


def runtimes_among(required: Iterable[str]) -> tuple[str, ...]:
    """The required runtimes, without the word that stands for bits."""
    return tuple(name for name in required if name != BITWISE)
