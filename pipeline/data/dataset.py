"""What every data set is once it is open: names, shape, normalisation, and two splits that yield batches on the device.

Takes images from memory or from files (`images.py`); must not know which data set it is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from export.errors import UsageError
from pipeline.data.images import Draws, Images

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8, N x C x H x W, and labels, int64; both on the device."""


class Progress(Protocol):
    """Shows how far a loop is, and passes its items on: `for item in progress(items, "decoding ...", num_items)`."""

    def __call__(self, items: Iterable[Item], what: str, total: int, /) -> Iterable[Item]: ...


def silent(items: Iterable[Item], what: str, total: int, /) -> Iterable[Item]:
    """The progress that shows nothing."""
    return items


@dataclass(frozen=True)
class Normalisation:
    """(p - mean) / std per channel, p a raw pixel, 0..255. The first part of the graph computes it, in float32."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class LabelledImages:
    """What a reader finds for one split: images wherever they are, and the index of each one's class."""

    images: Images
    labels: torch.Tensor


@dataclass(frozen=True)
class Source:
    """What a reader finds: the classes, two splits, and one-line notes on what it did to the images."""

    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Labelled images that come in batches on the device."""

    images: Images
    labels: torch.Tensor
    device: torch.device

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The whole split in its own order; the last batch may be smaller."""
        return self.batches_in_order(torch.arange(self.num_samples), batch_size)

    def batches_in_order(self, order: torch.Tensor, batch_size: int, draws: Draws = None) -> Iterator[Batch]:
        """The samples with the indices `order` (int64, on the CPU), batch by batch; the last one may be smaller."""
        labels = self.labels[order.to(self.labels.device)].to(self.device)
        starts = range(0, len(order), batch_size)
        for start, images in zip(starts, self.images.batches(order, batch_size, self.device, draws), strict=True):
            yield images, labels[start : start + batch_size]


@dataclass(frozen=True)
class DataSet:
    """One open data set."""

    name: str
    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    normalisation: Normalisation
    train: Split
    test: Split
    notes: tuple[str, ...]
    """One line each, for the user and the report: what was converted, what was left out, and where the images live."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.height, self.width


def too_large_a_batch(batch_size: int, num_training: int) -> UsageError:
    """The error that says so."""
    what = f"data.batch_size {batch_size} is more than the {num_training} training images"
    return UsageError(f"{what}; set it to {num_training} or less")
