"""What the loop asks of data: training batches that depend on (seed, epoch, step) alone, and a test split in order."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8, N x C x H x W, and labels, int64."""


class TrainingBatches(Protocol):
    """Epochs of batches, the same ones for the same epoch and step whenever they are asked for."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches there are."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0), from its `first_step` on."""
        ...

    def whole_set(self) -> Iterator[Batch]:
        """Every image once, as evaluation sees it, in batches that are mixed like those of an epoch and no smaller."""
        ...


class OneAhead:
    """Batches, each of which can be made before it is wanted: while the device still computes on the one before."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._prepared: list[Batch] = []

    def prepare(self) -> None:
        """Make the next one, where there is one."""
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
    """What is trained on, what is tested on, and how wide an image is."""

    training: TrainingBatches
    test: TestSplit
    image_width: int
