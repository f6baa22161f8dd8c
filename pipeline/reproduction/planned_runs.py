"""The runs that a table of a paper needs: rows, configs, shortening, and the folder of each run.

Takes a table and options. Trains nothing.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import JsonValue

from export.errors import UsageError
from pipeline.config import Config, load_config, parse_config
from pipeline.config.sections import CYCLE_EPOCHS, Schedule
from pipeline.reproduction.papers import TABLES, Row, Table


def table_by_name(name: str) -> Table:
    """Return a table of the papers."""
    if name in TABLES:
        return TABLES[name]
    near = difflib.get_close_matches(name, TABLES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(TABLES)}"
    raise UsageError(f"no table {name!r}, {hint}")


def needs_of(table: Table, configs: Path) -> dict[str, JsonValue]:
    """Return data set, epochs, rows and runs of one table."""
    rows: list[JsonValue] = [row.name for row in table.rows if not row.by_name_only]
    by_name: list[JsonValue] = [row.name for row in table.rows if row.by_name_only]
    epochs: list[JsonValue] = [*sorted({config_of(row, configs).training.epochs for row in table.rows})]
    return {
        "table": table.name,
        "title": table.title,
        "data": table.images.name,
        "epochs": epochs,
        "runs": table.num_runs,
        "rows": rows,
        "rows_by_name_only": by_name,
    }


def listing(tables: Iterable[Table], configs: Path) -> tuple[list[JsonValue], str]:
    """Return the list as data and as text."""
    needs = [needs_of(table, configs) for table in tables]
    lines = [f"{'table':18} {'data':16} {'epochs':>12} {'rows':>5} {'runs':>5}  title"]
    for each in needs:
        epochs, rows = each["epochs"], each["rows"]
        assert isinstance(epochs, list)
        assert isinstance(rows, list)
        spoken = ", ".join(map(str, epochs))
        lines.append(f"{each['table']:18} {each['data']:16} {spoken:>12} {len(rows):5} {each['runs']:5}  {each['title']}")
    return [*needs], "\n".join(lines)


@dataclass(frozen=True)
class ShortenedConfig:
    """A config of fewer epochs, and what had to change beyond the proportion."""

    config: Config
    notes: tuple[str, ...]


def shortened(config: Config, epochs: int) -> ShortenedConfig:
    """Return the config with this many epochs; a config with no more epochs stays as it is."""
    training = config.training
    if training.epochs <= epochs:
        return ShortenedConfig(config, ())
    share = Fraction(epochs, training.epochs)
    milestones = _milestones(training.schedule.milestones, share, epochs)
    values = config.model_dump()
    values["training"]["epochs"] = epochs
    values["training"]["freeze_statistics"]["epochs"] = min(round(training.freeze_statistics.epochs * share), epochs - 1)
    values["training"]["schedule"] |= _times(training.schedule, share) | {"milestones": milestones}
    short = parse_config(values, "the shortened config")
    return ShortenedConfig(short, (*_lost(training.schedule, milestones), *_never_frozen(config, short), *_unscaled(config)))


def _times(schedule: Schedule, share: Fraction) -> dict[str, object]:
    """Return the times that may fall between epochs.

    They are exact until converted to float at the end, so that a time at the end of the run stays
    there.
    """

    def scaled(time: float) -> float:
        return float(Fraction(time) * share)

    cycle = schedule.cycle_epochs or (CYCLE_EPOCHS if schedule.name == "cyclic" else None)
    return {
        "warmup_epochs": scaled(schedule.warmup_epochs),
        "cycle_epochs": None if cycle is None else scaled(cycle),
        "rate_points": tuple((scaled(epoch), rate) for epoch, rate in schedule.rate_points),
        "momentum_points": tuple((scaled(epoch), momentum) for epoch, momentum in schedule.momentum_points),
    }


def _milestones(milestones: Sequence[int], share: Fraction, epochs: int) -> tuple[int, ...]:
    scaled = {round(milestone * share) for milestone in milestones}
    return tuple(sorted(milestone for milestone in scaled if 0 < milestone < epochs))


def _lost(schedule: Schedule, kept: Sequence[int]) -> tuple[str, ...]:
    if len(kept) == len(schedule.milestones):
        return ()
    return (f"{len(schedule.milestones) - len(kept)} of {len(schedule.milestones)} drops of the rate left out, too few epochs for them",)


def _never_frozen(config: Config, short: Config) -> tuple[str, ...]:
    if not config.training.freeze_statistics.epochs or short.training.freeze_statistics.epochs:
        return ()
    return ("no epoch is left for frozen statistics, so they are never frozen",)


def _unscaled(config: Config) -> tuple[str, ...]:
    growing = config.training.clip.name == "norm" and config.training.clip.growth != "constant"
    return ("the clipping threshold goes by the number of the epoch and is that of the first ones",) if growing else ()


_AS_THE_PAPERS = ("exact.enabled=false", "training.precision=float32")
"""Settings that belong to no paper's protocol: the exact grid after training, and half
precision."""
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
class PlanRequest:
    """Which part of a table is run, and how."""

    rows: tuple[str, ...] = ()
    """Names, or patterns such as mimicnorm-*. None: all rows except those that run by name only."""
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
    """The ways in which these runs differ from the paper's; empty if they do not."""
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
        """The deviations of all rows, each once."""
        return tuple(dict.fromkeys(each for row in self.rows for each in row.deviations))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The rows of the table that do not run."""
        planned = {each.row.name for each in self.rows}
        return tuple(row.name for row in self.table.rows if row.name not in planned and not row.by_name_only)


def planned(table: Table, asked: PlanRequest, configs: Path, folder: Path) -> Plan:
    """Plan the runs.

    Every config is read and checked here, so that a mistake is reported before anything runs.
    """
    _refuse_what_options_say(asked.overrides)
    rows = tuple(_planned_row(table, row, asked, configs, folder) for row in chosen_rows(table, asked.rows))
    longest = max(row.epochs_of_the_paper for row in rows)
    if asked.epochs is not None and asked.epochs > longest:
        raise UsageError(f"--epochs {asked.epochs} is more than the {longest} epochs of {table.name}; it only shortens")
    return Plan(table, rows)


def chosen_rows(table: Table, patterns: Sequence[str]) -> tuple[Row, ...]:
    """Return the chosen rows in the order of the table, each once."""
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
    """Return the config of a row, with its own overrides and then further ones applied."""
    return load_config(configs / row.config, (*row.overrides, *further))


def _refuse_what_options_say(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _BY_OPTION:
            raise UsageError(f"--set {key} is not for reproduce; give {_BY_OPTION[key]}")


def _planned_row(table: Table, row: Row, asked: PlanRequest, configs: Path, folder: Path) -> PlannedRow:
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
    """Use images from this folder: in the data set's own format, or files in folders of classes."""
    if folder is None:
        return config
    values = config.model_dump()
    values["data"]["root"] = str(folder)
    if config.data.name != "imagefolder" and class_folders(folder):
        values["data"] |= {"name": "imagefolder", "download": False, "extra": False}
    return parse_config(values, f"with --data {folder}")


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the classes of an image folder; none if it is not one."""
    train = folder / "train"
    return tuple(sorted(each.name for each in train.iterdir() if each.is_dir() and each.name[0] != ".")) if train.is_dir() else ()


@dataclass(frozen=True)
class _Deviations:
    """The ways in which a row's runs differ from the paper's."""

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
    """Return whether a value is one that no protocol would state."""
    key = override.partition("=")[0].strip()
    return key in _FREE or key.startswith(_FREE_SECTIONS)
