"""Batch statistics where evaluation uses stored ones: the common base, recomputing and freezing.

Knows no method and no loop. A frozen part never acts again: training then computes, on weights,
what evaluation computes.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from export.graph.layers import TrainingKind, TrainingPart, parts_off, training_only_parts


class Moments:
    """Mean and variance of each channel over all added values, as if computed at once.

    Pooled in float64.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Add a batch, with channels in the second dimension."""
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        count = values.numel() // values.shape[1]
        # The pairwise update of Chan, Golub and LeVeque: it never subtracts two large sums.
        apart = mean.double() - self._mean.to(mean.device)
        total = self._count + count
        self._squares = self._squares.to(mean.device) + variance.double() * count + apart.square() * (self._count * count / total)
        self._mean = self._mean.to(mean.device) + apart * (count / total)
        self._count = total

    @property
    def mean(self) -> torch.Tensor:
        self._require_some()
        return self._mean

    @property
    def variance(self) -> torch.Tensor:
        """The mean square of the distance from the mean of these very values.

        It is not an estimate for others.
        """
        self._require_some()
        return self._squares / self._count

    def _require_some(self) -> None:
        if not self._count:
            raise RuntimeError("no values were added, so they have no moments")


class Statistics(TrainingPart):
    """A part that uses the statistics of the batch in training and stored ones in evaluation."""

    kind: ClassVar[TrainingKind] = "statistics"

    one_in = 1
    """The part sees the first of this many equal parts of the batch, and at least one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self.pooled: Moments | None = None
        """While it is set, it collects what the part sees, and the stored statistics stay as they
        are."""

    @property
    def acts(self) -> bool:
        return super().acts and not self.frozen

    def num_seen(self, batch_size: int) -> int:
        """Return the number of samples that its statistics are taken over."""
        return max(1, batch_size // self.one_in)

    @abstractmethod
    def store(self, moments: Moments) -> None:
        """Store these as the statistics."""


def statistics_parts(graph: nn.Module) -> dict[str, Statistics]:
    """Return the parts of a graph that use statistics of the batch, by name."""
    return {name: part for name, part in training_only_parts(graph).items() if isinstance(part, Statistics)}


def is_frozen(part: TrainingPart) -> bool:
    """Return whether training itself has switched a part off for good."""
    return isinstance(part, Statistics) and part.frozen


def freeze_statistics(graph: nn.Module) -> None:
    """Switch all batch statistics off for good."""
    for part in statistics_parts(graph).values():
        part.frozen = True


@torch.no_grad()
def recompute_statistics(graph: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the stored statistics by those of all these images, with equal weight for each value.

    One pass in training mode. Each layer sees what the layers before it make of the batch with the
    batch's statistics, as in training. Noise, dropout and whatever else exists in training only is
    off, because it is not deployed. The result does not depend on earlier statistics. The new ones
    are stored at the end, so an interrupted pass leaves the old ones.
    """
    parts = list(statistics_parts(graph).values())
    others = [part for part in training_only_parts(graph).values() if not isinstance(part, Statistics)]
    graph.train()
    gathered = [Moments() for _ in parts]
    try:
        for part, moments in zip(parts, gathered, strict=True):
            part.pooled = moments
        with parts_off(others):
            for images in batches:
                graph(images)
    finally:
        for part in parts:
            part.pooled = None
    for part, moments in zip(parts, gathered, strict=True):
        part.store(moments)
