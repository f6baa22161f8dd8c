"""What the loop asks of data: training batches that depend on (seed, epoch, step) alone, and a test split in order."""

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


class TestSplit(Protocol):
    """All samples, in their own order."""

    def batches(self, batch_size: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, what is tested on, and how wide an image is."""

    training: TrainingBatches
    test: TestSplit
    image_width: int
