"""What a command requests of a run, and every refusal that needs no torch.

Plain frozen data. These refusals come at once, before anything heavy is imported. Decisions that
need images or a network belong to the plan.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from deploy.runners.runtimes import require_runtimes
from deploy.verify.request import BITWISE, runtimes_among
from export.bundle import Bundle, open_bundle
from export.errors import NotHereError, UsageError
from pipeline.bundle.engines import EngineOptions, runnable_flavour
from pipeline.config import Config
from pipeline.run_folder import BundlePlace, RunFolder

_ANOTHER_RUN = "move it away, or choose another --out"


class Start(Enum):
    """What happens to the run in a folder."""

    RESUME = "go on from its last checkpoint, which must be there"
    FRESH = "start over, and replace it"
    EITHER = "go on where there is a checkpoint, and start where there is none"

    @classmethod
    def of_option(cls, resume: bool | None) -> "Start":
        """Return the meaning of --resume, --fresh and neither of them."""
        return {True: cls.RESUME, False: cls.FRESH, None: cls.EITHER}[resume]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Train and keep checkpoints."""

    config: Config
    folder: RunFolder
    start: Start = Start.EITHER

    def require_possible(self) -> None:
        _require_a_checkpoint(self.start, self.folder)


@dataclass(frozen=True, kw_only=True)
class TrainExportRequest:
    """Train, then fold, export, verify and publish.

    The runtimes of the config must be available too, because training takes hours.
    """

    config: Config
    folder: RunFolder
    start: Start = Start.EITHER
    required: tuple[str, ...] = ()
    """Names of runtimes, and the word for every bit."""

    @property
    def all_required(self) -> tuple[str, ...]:
        return (*self.required, *self.config.verify.runtimes)

    def require_possible(self) -> None:
        require_runtimes(runtimes_among(self.all_required))
        _require_engines(self.config)
        self.folder.bundle.require_free(_ANOTHER_RUN)
        _require_a_checkpoint(self.start, self.folder)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Fold, export, verify and publish the content of a run folder.

    It may have been trained where other runtimes are available.
    """

    folder: RunFolder
    required: tuple[str, ...] = ()

    def require_possible(self) -> None:
        self.folder.require_run(f"train one with pipeline train CONFIG --out {self.folder}")
        self.folder.bundle.require_free(_ANOTHER_RUN)


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Export a network that was trained elsewhere, as a run of its own."""

    config: Config
    weights: Path
    folder: RunFolder
    required: tuple[str, ...] = ()

    @property
    def all_required(self) -> tuple[str, ...]:
        return (*self.required, *self.config.verify.runtimes)

    def require_possible(self) -> None:
        if not self.weights.is_file():
            raise UsageError(f"{self.weights} is not a file; give a safetensors file with the network's weights")
        require_runtimes(runtimes_among(self.all_required))
        _require_engines(self.config)
        self.folder.bundle.require_free(_ANOTHER_RUN)
        self._require_no_other_run()

    def _require_no_other_run(self) -> None:
        """Refuse to replace a trained run; an import may be repeated."""
        if self.folder.config.exists() and self.folder.stored_config().method != self.config.method:
            raise UsageError(f"{self.folder} holds another run; choose another --out")


@dataclass(frozen=True, kw_only=True)
class EngineExportRequest:
    """Build engines into a bundle and verify it with them."""

    bundle: Path
    options: EngineOptions = field(default_factory=EngineOptions)
    network: str | None = None
    """Code of the user's own that may build the network."""
    required: tuple[str, ...] = ()

    @property
    def place(self) -> BundlePlace:
        return BundlePlace(self.bundle.resolve())  # "." does not name its parent

    def require_possible(self) -> Bundle:
        bundle = open_bundle(self.place.path)
        require_runtimes(runtimes_among(self.required))
        self.place.require_free_beside("move it away")
        return bundle


RunRequest = TrainRequest | TrainExportRequest | ExportRequest | ImportRequest


def bitwise(required: tuple[str, ...]) -> bool:
    """Return whether the word for every bit is among the requirements."""
    return BITWISE in required


def _require_a_checkpoint(start: Start, folder: RunFolder) -> None:
    if start is Start.RESUME and not folder.last_checkpoint.exists():
        raise UsageError(f"there is no checkpoint {folder.last_checkpoint} to go on from; start over with --fresh")


def _require_engines(config: Config) -> None:
    """If the config requires engines, report at once that they cannot be built."""
    if config.export.tensorrt is not True:
        return
    try:
        runnable_flavour()
    except NotHereError as error:
        raise NotHereError(f"export.tensorrt: true requires engines, but none can be built and run here: {error}") from error
