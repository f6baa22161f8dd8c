"""The progress bar on a terminal.

It is separate from `console` because importing rich takes longer than showing the help.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pipeline.cli.console import Progress


class _Bar(Progress):
    def __init__(self, title: str, rich: RichProgress, total: int) -> None:
        self.rich = rich
        self.task = rich.add_task(title, total=total, figures="")

    def advance(self, steps: int = 1) -> None:
        self.rich.advance(self.task, steps)

    def line(self, text: str) -> None:
        self.rich.update(self.task, figures=text)


@contextmanager
def bar(title: str, total: int) -> Iterator[Progress]:
    """Show a bar on standard error, with the latest line next to it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with RichProgress(*columns, console=Terminal(stderr=True)) as rich:
        yield _Bar(title, rich, total)
