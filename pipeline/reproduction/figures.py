"""The figures of runs, read from their folders, and their mean or median with its spread.

Takes folders. Knows no table and no runner.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import DamagedError
from pipeline.reproduction.papers import Statistic
from pipeline.run_folder import RunFolder

_WANTED = ("epoch", "train_accuracy", "test_accuracy", "seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Divergence:
    """Where a run ended because its numbers stopped being finite."""

    epoch: int
    message: str


@dataclass(frozen=True)
class RunFigures:
    """What a run folder holds so far."""

    folder: Path
    seed: int
    records: tuple[dict[str, Any], ...]
    """The lines of metrics.jsonl."""
    diverged: Divergence | None
    machines: tuple[dict[str, Any], ...]

    @property
    def best(self) -> dict[str, Any] | None:
        """The first epoch with the highest test accuracy."""
        return max(self.records, key=lambda record: record["test_accuracy"], default=None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last epoch; None for a run that diverged."""
        return self.records[-1] if self.records and self.diverged is None else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak memory; None for a run on a CPU.

        There it is the size of the whole process, to which other runs have added.
        """
        if any(machine["device"] == "cpu" for machine in self.machines):
            return None
        return max((record["peak_memory_bytes"] for record in self.records), default=None)

    @property
    def minutes_per_epoch(self) -> float | None:
        return statistics.mean(record["seconds"] for record in self.records) / 60 if self.records else None


def run_figures(folder: Path, seed: int) -> RunFigures:
    """Read a run folder; a missing folder has no records."""
    files = RunFolder(folder)
    diverged = _json(files.divergence, {"epoch", "message"})
    return RunFigures(
        folder=folder,
        seed=seed,
        records=_records(files.metrics),
        diverged=Divergence(**diverged[0]) if diverged else None,
        machines=_json(files.machines, {"device", "name", "precision", "torch"}),
    )


def _records(path: Path) -> tuple[dict[str, Any], ...]:
    """Read whole lines only: a run may be writing the next one."""
    if not path.is_file():
        return ()
    try:
        records = tuple(json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
        for record in records:
            _ = [record[key] for key in _WANTED]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path} does not hold one epoch per line, each with {', '.join(_WANTED)} ({error!r}); train that run again") from error
    return records


def _json(path: Path, keys: set[str]) -> tuple[dict[str, Any], ...]:
    """Return the entries of one of our files, each with these keys; none if there is no file."""
    if not path.is_file():
        return ()
    try:
        entries = tuple(json.loads(path.read_bytes()))
        if not all(each.keys() == keys for each in entries):
            raise ValueError(f"expected entries of {', '.join(sorted(keys))}")
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is not as it was written ({error}); remove its folder, and run that row again") from error
    return entries


@dataclass(frozen=True)
class Spread:
    """A figure over several runs; for a single run there is only the middle."""

    middle: float
    """Mean or median."""
    low: float | None = None
    """Mean minus standard deviation, or the lower quartile."""
    high: float | None = None
    width: float | None = None
    """The standard deviation, or the distance of the quartiles."""


def spread(values: Sequence[float], statistic: Statistic) -> Spread | None:
    """Return the spread: standard deviation with n - 1, or quartiles by linear interpolation."""
    if not values:
        return None
    if statistic == "mean and std":
        mean = statistics.fmean(values)
        if len(values) == 1:
            return Spread(mean)
        deviation = statistics.stdev(values, mean)
        return Spread(mean, mean - deviation, mean + deviation, deviation)
    middle = statistics.median(values)
    if len(values) == 1:
        return Spread(middle)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, high - low)


def over_runs(runs: Sequence[RunFigures], figure: Callable[[RunFigures], float | None], statistic: Statistic) -> Spread | None:
    """Return the spread over the runs that have the figure."""
    return spread([value for run in runs if (value := figure(run)) is not None], statistic)
