"""A table that was run, or runs that are compared: groups of runs with figures and notes.

Takes plans and figures. The notes must appear wherever the figures are shown. Knows no form of
output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.reproduction.figures import RunFigures, Spread, over_runs, run_figures
from pipeline.reproduction.papers import PrintedFigure, Quantity, Statistic
from pipeline.reproduction.papers.table import Picture
from pipeline.reproduction.planned_runs import Plan, PlannedRow

_BYTES = {"MB": 2**20, "GB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Group:
    """A row: runs that differ only in the seed."""

    name: str
    cells: tuple[str, ...]
    epochs: int
    num_planned: int
    runs: tuple[RunFigures, ...]
    rate: float
    """The learning rate of the config."""
    printed: Mapping[Quantity, PrintedFigure] = field(default_factory=dict)
    reading: str = ""
    deviations: tuple[str, ...] = ()
    """The ways in which the runs differ from the paper's; empty if they do not, and for a
    comparison."""
    notes: tuple[str, ...] = ()
    panel: str = ""
    curve: str = ""

    @property
    def finished(self) -> tuple[RunFigures, ...]:
        """The runs that reached their end or diverged; only their figures count."""
        return tuple(run for run in self.runs if run.diverged is not None or len(run.records) >= self.epochs)

    @property
    def num_diverged(self) -> int:
        return sum(run.diverged is not None for run in self.finished)

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """The deviations, and the runs still to come."""
        finished = len(self.finished)
        return (*self.deviations, *([f"{finished} of {self.num_planned} runs finished"] if finished < self.num_planned else []))

    @property
    def state(self) -> str:
        """The number of runs behind the figures."""
        parts = [f"{len(self.finished)} of {self.num_planned} runs"]
        if self.num_diverged:
            epochs = ", ".join(str(run.diverged.epoch) for run in self.finished if run.diverged)
            parts.append(f"{self.num_diverged} diverged (in epoch {epochs})")
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is shown of a group; accuracies in percent.

    A run that diverged has a best epoch, if it finished one, but no last epoch.
    """

    best: Spread | None
    last: Spread | None
    train: Spread | None
    memory: Spread | None
    minutes: Spread | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that is written about a table or a comparison."""

    name: str
    subject: str
    columns: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    statistic: Statistic
    memory_unit: str
    picture: Picture
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    of_a_paper: bool
    num_runs_of_the_paper: str = ""
    which_epoch: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def deviations(self) -> tuple[str, ...]:
        """The deviations of all rows, each once, including runs still to come."""
        found = dict.fromkeys(each for group in self.groups for each in group.deviations)
        missing = sum(group.num_planned - len(group.finished) for group in self.groups)
        planned = sum(group.num_planned for group in self.groups)
        return (*found, *([f"{planned - missing} of {planned} runs finished"] if missing else []))

    @property
    def is_reproduction(self) -> bool:
        """Whether every row that is shown was run as the paper states."""
        return self.of_a_paper and not self.deviations

    @property
    def title(self) -> str:
        """The subject, followed by what keeps it from being a reproduction."""
        number = len(self.groups)
        rows = f", {number} row{'s' if number > 1 else ''} of {number + len(self.left_out)}" if self.left_out else ""
        if not self.deviations:
            return f"{self.subject}{rows}"
        head = "not a reproduction: " if self.of_a_paper else ""
        return f"{self.subject}{rows} ({head}{'; '.join(self.deviations)})"

    def figures(self, group: Group) -> Figures:
        """Return the figures of a group, over its finished runs."""

        def over(figure: str, key: str) -> Spread | None:
            return over_runs(group.finished, lambda run: _percent(getattr(run, figure), key), self.statistic)

        memory = over_runs(group.finished, lambda run: _scaled(run.peak_memory_bytes, _BYTES[self.memory_unit]), self.statistic)
        minutes = over_runs(group.finished, lambda run: run.minutes_per_epoch, self.statistic)
        return Figures(
            best=over("best", "test_accuracy"),
            last=over("last", "test_accuracy"),
            train=over("last", "train_accuracy"),
            memory=memory,
            minutes=minutes,
        )


def result_of(plan: Plan) -> Result:
    """Return what the folders of a plan hold so far."""
    table = plan.table
    return Result(
        name=table.name,
        subject=table.title,
        columns=table.columns,
        quantities=table.quantities,
        statistic=table.statistic,
        memory_unit=table.memory_unit,
        picture=table.picture,
        groups=tuple(_group(row) for row in plan.rows),
        notes=table.notes,
        of_a_paper=True,
        num_runs_of_the_paper=f"{table.num_runs}" if table.runs_stated else "not stated",
        which_epoch=table.which_epoch,
        left_out=plan.left_out,
    )


def _group(planned: PlannedRow) -> Group:
    row = planned.row
    return Group(
        name=row.name,
        cells=row.cells,
        epochs=planned.config.training.epochs,
        num_planned=len(planned.runs),
        runs=tuple(run_figures(run.folder, run.seed) for run in planned.runs),
        rate=planned.config.training.learning_rate,
        printed=row.printed,
        reading=row.reading,
        deviations=planned.deviations,
        notes=(*row.notes, *planned.notes),
        panel=row.panel,
        curve=row.curve,
    )


def _percent(record: Mapping[str, float] | None, key: str) -> float | None:
    return None if record is None else 100 * record[key]


def _scaled(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit


def spoken(figure: Spread | None, statistic: Statistic, digits: int = 2) -> str:
    """Return a figure as text: 94.03 ± 0.14, or 94.0 (quartiles 0.22 apart)."""
    if figure is None:
        return "-"
    middle = f"{figure.middle:.{digits}f}"
    if figure.width is None:
        return middle
    width = f"{figure.width:.{digits}f}"
    return f"{middle} ± {width}" if statistic == "mean and std" else f"{middle} (IQR {width})"


def as_printed(figure: PrintedFigure | None, statistic: Statistic) -> str:
    """Return the paper's figure in the same form."""
    if figure is None:
        return "-"
    if not figure.spread:
        return figure.value
    return f"{figure.value} ± {figure.spread}" if statistic == "mean and std" else f"{figure.value} (IQR {figure.spread})"


def footnotes(result: Result) -> Sequence[str]:
    """Return the notes on single rows, each once, with the names of the rows."""
    names: dict[str, list[str]] = {}
    for group in result.groups:
        for sentence in _sentences(group):
            names.setdefault(sentence, []).append(group.name)
    return [f"{', '.join(f'`{name}`' for name in rows)}: {sentence}" for sentence, rows in names.items()]


def _sentences(group: Group) -> list[str]:
    remarks = [f"the paper: {printed.remark}" for printed in group.printed.values() if printed.remark]
    return [*([f"reading: {group.reading}"] if group.reading else []), *remarks, *group.notes]
