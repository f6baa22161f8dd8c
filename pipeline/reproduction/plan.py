"""What is to be run for a table: rows with their configs, a folder for each run, and all in which they are not the paper's runs.

Takes a table, what was asked for, and the folder of configs; reads configs and nothing else, but looks which kind of images is given.
"""

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import UsageError
from pipeline.config import Config, load_config, parse_config
from pipeline.papers import Row, Table
from pipeline.reproduction.shortening import shortened

_AS_THE_PAPERS = ("exact.enabled=false", "training.precision=float32")
"""Of no paper's protocol: the exact grid behind training, and half precision."""
_FREE = (
    "data.download",
    "data.workers",
    "data.residence",
    "training.device",
    "training.threads",
    "training.deterministic",
    "training.channels_last",
    "training.cuda_graphs",
)
_FREE_SECTIONS = ("export.", "verify.", "exact.", "training.diagnosis", "training.deflated_below")
_BY_OPTION = {
    "training.epochs": "--epochs",
    "training.seed": "--seeds",
    "data.root": "--data",
    "data.name": "--data",
    "data": "--data",
    "training": "the values in it that shall change",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What of a table shall be run, and how."""

    rows: tuple[str, ...] = ()
    """Names, or patterns such as mimicnorm-*; none: all but those by name only."""
    num_seeds: int | None = None
    epochs: int | None = None
    data: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """An ordinary run."""

    seed: int
    config: Config
    folder: Path


@dataclass(frozen=True)
class PlannedRow:
    """A row of the table and its runs."""

    row: Row
    epochs_of_the_paper: int
    runs: tuple[PlannedRun, ...]
    deviations: tuple[str, ...]
    """In what these are not the paper's runs; empty where they are."""
    notes: tuple[str, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config


@dataclass(frozen=True)
class Plan:
    """The rows that will run, in the order of the table."""

    table: Table
    rows: tuple[PlannedRow, ...]

    @property
    def deviations(self) -> tuple[str, ...]:
        """Of any row, each once."""
        return tuple(dict.fromkeys(each for row in self.rows for each in row.deviations))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Rows of the table that do not run."""
        planned = {each.row.name for each in self.rows}
        return tuple(row.name for row in self.table.rows if row.name not in planned and not row.by_name_only)


def planned(table: Table, asked: Asked, configs: Path, folder: Path) -> Plan:
    """Every config is read and checked here, so that a mistake is said before anything runs."""
    _refuse_what_options_say(asked.overrides)
    rows = tuple(_planned_row(table, row, asked, configs, folder) for row in chosen_rows(table, asked.rows))
    longest = max(row.epochs_of_the_paper for row in rows)
    if asked.epochs is not None and asked.epochs > longest:
        raise UsageError(f"--epochs {asked.epochs} is more than the {longest} epochs of {table.name}; it only shortens")
    return Plan(table, rows)


def chosen_rows(table: Table, patterns: Sequence[str]) -> tuple[Row, ...]:
    """In the order of the table, each once."""
    if not patterns:
        return tuple(row for row in table.rows if not row.by_name_only)
    for pattern in patterns:
        _require_a_match(table, pattern)
    return tuple(row for row in table.rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns))


def _require_a_match(table: Table, pattern: str) -> None:
    names = [row.name for row in table.rows]
    if fnmatch.filter(names, pattern):
        return
    near = difflib.get_close_matches(pattern, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
    raise UsageError(f"{table.name} has no row {pattern!r}, {hint}")


def config_of(row: Row, configs: Path, further: Sequence[str] = ()) -> Config:
    """The config of a row, its own overrides and then further ones applied."""
    return load_config(configs / row.config, (*row.overrides, *further))


def _refuse_what_options_say(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _BY_OPTION:
            raise UsageError(f"--set {key} is not for reproduce; give {_BY_OPTION[key]}")


def _planned_row(table: Table, row: Row, asked: Asked, configs: Path, folder: Path) -> PlannedRow:
    as_printed = config_of(row, configs)
    try:
        config = _with_images(config_of(row, configs, (*_AS_THE_PAPERS, *asked.overrides)), asked.data)
    except UsageError as error:
        raise UsageError(f"row {row.name}: {error}") from error
    short = shortened(config, asked.epochs or config.training.epochs)
    num_runs = asked.num_seeds or table.num_runs
    deviations = _Deviations(table, as_printed, short.config, num_runs, asked.overrides)
    runs = tuple(_run(short.config, seed, folder / "runs" / row.name / f"seed-{seed}") for seed in range(num_runs))
    return PlannedRow(row, as_printed.training.epochs, runs, tuple(deviations.all()), short.notes)


def _run(config: Config, seed: int, folder: Path) -> PlannedRun:
    return PlannedRun(seed, config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})}), folder)


def _with_images(config: Config, folder: Path | None) -> Config:
    """Images from this folder: in the data set's own format, or files in folders of classes."""
    if folder is None:
        return config
    values = config.model_dump()
    values["data"]["root"] = str(folder)
    if config.data.name != "imagefolder" and class_folders(folder):
        values["data"] |= {"name": "imagefolder", "download": False, "extra": False}
    return parse_config(values, f"with --data {folder}")


def class_folders(folder: Path) -> tuple[str, ...]:
    """The classes of an image folder; none where it is not one."""
    train = folder / "train"
    return tuple(sorted(each.name for each in train.iterdir() if each.is_dir() and each.name[0] != ".")) if train.is_dir() else ()


@dataclass(frozen=True)
class _Deviations:
    """In what a row's runs are not the paper's."""

    table: Table
    of_the_paper: Config
    ours: Config
    num_runs: int
    overrides: tuple[str, ...]

    def all(self) -> Iterator[str]:
        if self.ours.training.epochs < self.of_the_paper.training.epochs:
            yield f"shortened to {self.ours.training.epochs} of {self.of_the_paper.training.epochs} epochs"
        if self.num_runs < self.table.num_runs:
            yield f"{self.num_runs} of {self.table.num_runs} seeds"
        yield from self._other_images
        yield from (f"--set {override}" for override in self.overrides if not _is_free(override))

    @property
    def _other_images(self) -> tuple[str, ...]:
        images = self.table.images
        if self.ours.data.name != "imagefolder":
            return ()
        num_classes = len(class_folders(Path(self.ours.data.root)))
        if self.of_the_paper.data.name == "imagefolder" and num_classes in (0, images.num_classes):  # 0: not there, which the run will say
            return ()
        return (f"other data: image files in {num_classes} classes instead of {images.name}",)


def _is_free(override: str) -> bool:
    """Whether a value is none that a protocol would state."""
    key = override.partition("=")[0].strip()
    return key in _FREE or key.startswith(_FREE_SECTIONS)
