"""How a run is shown and how it ends: progress, lines per epoch, and the outcome of a command.

Interfaces and plain data; the terminal itself belongs to the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import JsonValue

from export.errors import NotTheSameError

if TYPE_CHECKING:
    from pipeline.training import EpochRecord

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows the progress of a long piece of work."""

    def advance(self, steps: int = 1) -> None: ...

    def line(self, text: str) -> None: ...


class Console(Protocol):
    """What a run needs from its display."""

    def say(self, text: str) -> None: ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Progress]: ...


class EpochLines:
    """Watches the training loop and prints a line per epoch."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._num_epochs = progress, 0

    def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        self._num_epochs = num_epochs
        if steps_done:
            self._progress.advance(steps_done)
            self._progress.line(f"continuing after step {steps_done} of {num_epochs * steps_per_epoch}")

    def statistics_frozen(self, step: int, test_accuracy: float) -> None:
        self._progress.line(f"batch statistics recomputed and frozen after step {step}  test {test_accuracy:.2%}")

    def epoch_started(self, epoch: int) -> None:
        return

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        self._progress.advance()

    def epoch_done(self, record: EpochRecord) -> None:
        self._progress.line(
            f"epoch {record.epoch}/{self._num_epochs}  loss {record.train_loss:.4f}  train {record.train_accuracy:.2%}  "
            f"test {record.test_accuracy:.2%}  {record.images_per_second:,.0f} images/s"
        )


def shown(console: Console, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass items on, and show how many have been passed."""
    with console.progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


@dataclass(frozen=True)
class Outcome:
    """What a command found, as data and as text.

    `failure` is the sentence that makes it fail; `unwritten` is the error of a report that could
    not be written.
    """

    facts: Mapping[str, JsonValue]
    text: str
    failure: str | None = None
    interrupted: bool = False
    unwritten: OSError | None = None

    def raise_failure(self) -> None:
        """Raise the failure; call this after the result has been printed."""
        if self.failure is not None:
            raise NotTheSameError(self.failure if self.unwritten is None else f"{self.failure}; nor could the report be written: {self.unwritten}")
        if self.unwritten is not None:
            raise self.unwritten
        if self.interrupted:
            raise KeyboardInterrupt
