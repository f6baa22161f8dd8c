"""What the loop needs from others: batches to train and test on, and a watcher.

Types, the prefetching of batches, and two watchers: one prints a line per epoch, one nothing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from deploy.progress import Progress
from pipeline.training.metrics import EpochRecord

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8, N x C x H x W, and labels, int64."""


class TrainingBatches(Protocol):
    """Epochs of batches, which are the same for the same epoch and step at every request."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 0), starting at its `first_step`."""
        ...

    def whole_set(self) -> Iterator[Batch]:
        """Yield every image once, as evaluation sees it.

        Batches are shuffled like those of an epoch and no smaller.
        """
        ...


class PrefetchedBatches:
    """Batches, each of which can be made before it is needed.

    This happens while the device still computes on the batch before.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._prepared: list[Batch] = []

    def prepare(self) -> None:
        """Make the next batch, if there is one."""
        if not self._prepared:
            self._prepared.extend(itertools.islice(self._batches, 1))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.prepare()
        if not self._prepared:
            raise StopIteration
        return self._prepared.pop()


class TestSplit(Protocol):
    """All samples, in their own order."""

    def batches(self, batch_size: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, what is tested on, and the width of an image."""

    training: TrainingBatches
    test: TestSplit
    image_width: int


class Watcher(Protocol):
    """Is called by the loop and must return quickly.

    Epochs and steps count from 1.
    """

    def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None: ...

    def statistics_frozen(self, step: int, test_accuracy: float) -> None: ...

    def epoch_started(self, epoch: int) -> None: ...

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None: ...

    def epoch_done(self, record: EpochRecord) -> None: ...


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


class SilentWatcher:
    """A watcher that prints nothing."""

    def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        return

    def statistics_frozen(self, step: int, test_accuracy: float) -> None:
        return

    def epoch_started(self, epoch: int) -> None:
        return

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        return

    def epoch_done(self, record: EpochRecord) -> None:
        return
