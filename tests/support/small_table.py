"""A table for tests: digits, a small network, runs of a second. It belongs to no paper."""

from collections.abc import Callable
from pathlib import Path

from pipeline.reproduction.papers import PrintedFigure, Row, Table
from pipeline.reproduction.papers.table import Images, Picture, Statistic

CONFIGS = Path(__file__).parents[2] / "configs"
EPOCHS = 2
_SHORT = (
    f"training.epochs={EPOCHS}",
    "training.schedule.milestones=[1]",
    "training.schedule.warmup_epochs=0.5",
    "training.threads=1",
    "data.batch_size=128",
)


def row(method: str, rate: str, accuracy: str, *notes: str) -> Row:
    """A method at a rate."""
    overrides = (*_SHORT, f"method={{name: {method}}}", f"training.learning_rate={rate}")
    return Row(
        name=f"{method}-{rate}",
        cells=(method, rate),
        config="quickstart.yaml",
        overrides=overrides,
        printed={"accuracy": PrintedFigure(accuracy, "0.25")},
        notes=notes,
        curve=method,
    )


def small_table(statistic: Statistic = "mean and std", picture: Picture = "epochs") -> Table:
    """Two methods that train, and one that diverges at once."""
    return Table(
        name="small-table",
        title="A small table",
        images=Images("digits", 10),
        columns=("method", "rate"),
        quantities=("accuracy", "train_accuracy", "memory", "minutes"),
        num_runs=2,
        runs_stated=True,
        statistic=statistic,
        which_epoch="the best epoch: stated",
        picture=picture,
        rows=(row("batchnorm", "0.1", "97.5", "a note on this row"), row("czmig", "0.2", "96.25"), row("nonorm", "1000000.0", "10.00")),
        notes=("A note on the table.",),
    )


class Watched:
    """A console that keeps what is said, and calls `at_line` for each line of progress."""

    def __init__(self, at_line: Callable[[str], None] = lambda text: None) -> None:
        self.said: list[str] = []
        self._at_line = at_line

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, title: str, total: int) -> "Watched":
        return self

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: object) -> None:
        return

    def advance(self, steps: int = 1) -> None:
        return

    def line(self, text: str) -> None:
        self.said.append(text)
        self._at_line(text)
