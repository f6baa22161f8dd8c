"""A table of a paper as literal data: its rows, the printed figures and notes on them.

Names configs by their path below configs/. Knows no runner and reads no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Quantity = Literal["accuracy", "train_accuracy", "memory", "minutes"]
"""accuracy: of the test split, in percent. memory: the peak, in the unit of the table. minutes: of
an epoch."""
Statistic = Literal["mean and std", "median and quartiles"]
Picture = Literal["epochs", "rates"]
"""epochs: accuracy over epochs. rates: best accuracy by learning rate."""


@dataclass(frozen=True)
class PrintedFigure:
    """A figure as the paper prints it, digit for digit."""

    value: str
    spread: str = ""
    """The standard deviation, or the distance of the quartiles; empty if the paper prints none."""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, and the run that it stands for."""

    name: str
    """The name on the command line and of a folder."""
    cells: tuple[str, ...]
    """What tells the row from the others, as printed, in the order of `Table.columns`."""
    config: str
    overrides: tuple[str, ...] = ()
    """`key.path=value` over the config, as with --set."""
    printed: Mapping[Quantity, PrintedFigure] = field(default_factory=dict)
    reading: str = ""
    """Which of several readings the row runs, if the paper and its code, or the paper and itself,
    differ."""
    notes: tuple[str, ...] = ()
    panel: str = ""
    """Rows of one panel share a picture."""
    curve: str = ""
    """In a picture by learning rate, the curve that the row is a point of."""
    by_name_only: bool = False
    """Whether this is another reading of an existing row, which runs only if it is named."""


@dataclass(frozen=True)
class Images:
    """The data set of a table, and how many classes it has."""

    name: str
    num_classes: int


CIFAR10, CIFAR100, SVHN, IMAGENET = Images("CIFAR-10", 10), Images("CIFAR-100", 100), Images("SVHN with extra", 10), Images("ImageNet", 1000)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper, or figures from its text."""

    name: str
    title: str
    images: Images
    columns: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    rows: tuple[Row, ...]
    num_runs: int
    """The number of runs of each row; 1 if the paper states none."""
    runs_stated: bool
    statistic: Statistic = "mean and std"
    which_epoch: str
    """Which epoch's accuracy the paper prints, and the source of that statement."""
    memory_unit: Literal["MB", "GB"] = "MB"
    picture: Picture = "epochs"
    notes: tuple[str, ...] = ()
