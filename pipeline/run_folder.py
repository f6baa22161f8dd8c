"""A run folder: the names of its files, who may use it, and where its bundle is published.

Takes paths; needs no torch. Names inside a bundle belong to `export.bundle`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from export.bundle import MANIFEST
from export.errors import UsageError
from export.files import folder_in_work, publish_folder, sole_use, write_file
from pipeline.config import Config, dump_config, load_config


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    The exact stage trains in a folder of the same form inside it.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The config that was trained, with every default written out."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics, one line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def diagnosis(self) -> Path:
        """The figures of the layers, one line per epoch, if they were requested."""
        return self.path / "diagnosis.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.safetensors"

    @property
    def exact(self) -> "RunFolder":
        """The folder in which the exact stage trains."""
        return RunFolder(self.path / "exact")

    @property
    def calibration(self) -> Path:
        """For an exact stage: the accuracy with which its training began."""
        return self.path / "calibrated.json"

    @property
    def divergence(self) -> Path:
        """For a run of `pipeline reproduce` whose numbers stopped being finite: epoch and
        message."""
        return self.path / "diverged.json"

    @property
    def machines(self) -> Path:
        """For a run of `pipeline reproduce`: the machines on which it computed."""
        return self.path / "machines.json"

    @property
    def bundle(self) -> "BundlePlace":
        return BundlePlace(self.path / "bundle")

    def sole_use(self) -> AbstractContextManager[None]:
        """Keep other processes out; refuse in one line if another process is using the folder."""
        return sole_use(self.path)

    def require_run(self, remedy: str) -> None:
        """Raise an error of one line if the folder is not that of a run."""
        for path in (self.config, self.metrics):
            if not path.is_file():
                raise UsageError(f"{self} holds no run: there is no {path}; {remedy}")

    def require_makeable(self) -> None:
        """Raise an error of one line if the folder could not be made; do not make it."""
        nearest = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise UsageError(f"no folder can be made at {self}: {nearest} is a file; choose another path")
        if not os.access(nearest, os.W_OK):
            raise UsageError(f"no folder can be made at {self}: {nearest} may not be written to; choose another path")

    def stored_config(self) -> Config:
        return load_config(self.config)

    def store_config(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.config, dump_config(config).encode())

    def last_record(self) -> dict[str, JsonValue]:
        """Return the figures of the last epoch; empty before the first one is done."""
        lines = self.metrics.read_bytes().splitlines()
        record: dict[str, JsonValue] = json.loads(lines[-1]) if lines else {}
        return record


@dataclass(frozen=True)
class BundlePlace:
    """Where a bundle is published.

    A bundle that failed is kept next to it for inspection and never replaces one that passed.
    """

    path: Path

    @property
    def failed(self) -> Path:
        return self.path.with_name(f"{self.path.name}-failed")

    def require_free(self, remedy: str) -> None:
        """Require that only a bundle will be replaced; this is checked before hours of training."""
        _require_bundle_or_nothing(self.path, remedy)
        _require_bundle_or_nothing(self.failed, remedy)

    def require_free_beside(self, remedy: str) -> None:
        """Require the same of the place for a bundle that fails, when the other place is known to
        hold a bundle."""
        _require_bundle_or_nothing(self.failed, remedy)

    @contextmanager
    def in_work(self) -> Iterator[Path]:
        """Yield a hidden folder to fill; it is removed if it was not published in the block."""
        with folder_in_work(self.path.parent) as staged:
            yield staged

    def publish(self, staged: Path, *, passed: bool) -> Path:
        """Move a filled folder to its place, as a whole; return that place."""
        target = self.path if passed else self.failed
        publish_folder(staged, target)
        return target

    def forget_failed(self) -> None:
        """Remove the failed bundle, once the same run has passed."""
        if self.failed.exists():
            shutil.rmtree(self.failed)


def _require_bundle_or_nothing(path: Path, remedy: str) -> None:
    if (path.exists() or path.is_symlink()) and not _is_bundle(path):
        raise UsageError(f"{path} is in the way: expected a bundle or nothing, got {_kind(path)}; {remedy}")


def _is_bundle(path: Path) -> bool:
    return not path.is_symlink() and (path / MANIFEST).is_file()


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return f"a folder without {MANIFEST}" if path.is_dir() else "a file"
