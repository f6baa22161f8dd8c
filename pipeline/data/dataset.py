"""An open data set: names, shape, normalisation, and two splits that yield batches on the device.

Takes images from memory or from files (`images.py`). Does not know which data set it is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from export.errors import UsageError
from export.preprocess import Recipe
from pipeline.data.images import Draws, Images

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (uint8, N x C x H x W) and labels (int64), both on the device."""


class Progress(Protocol):
    """Shows the progress of a loop and passes its items on.

    Used as `for item in progress(items, "decoding ...", num_items)`.
    """

    def __call__(self, items: Iterable[Item], what: str, total: int, /) -> Iterable[Item]: ...


def silent(items: Iterable[Item], what: str, total: int, /) -> Iterable[Item]:
    """Show nothing."""
    return items


@dataclass(frozen=True)
class Normalisation:
    """(p - mean) / std per channel, for a raw pixel p in 0..255.

    The first part of the graph computes it, in float32.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class LabelledImages:
    """One split as a reader finds it: its images, in memory or in files, and the class index of
    each."""

    images: Images
    labels: torch.Tensor


@dataclass(frozen=True)
class Source:
    """What a reader finds: the classes, two splits, and one-line notes on changes to the images."""

    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    notes: tuple[str, ...] = ()
    recipe: Recipe | None = None
    """How a file becomes pixels. None: the pixels are the data set's own."""


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
        """Yield the whole split in its own order; the last batch may be smaller."""
        return self.batches_in_order(torch.arange(self.num_samples), batch_size)

    def batches_in_order(self, order: torch.Tensor, batch_size: int, draws: Draws = None) -> Iterator[Batch]:
        """Yield the samples with the indices `order` (int64, on the CPU) in batches.

        The last batch may be smaller.
        """
        labels = self.labels[order.to(self.labels.device)].to(self.device)
        starts = range(0, len(order), batch_size)
        for start, images in zip(starts, self.images.batches(order, batch_size, self.device, draws), strict=True):
            yield images, labels[start : start + batch_size]


@dataclass(frozen=True)
class DataSet:
    """An open data set."""

    name: str
    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    normalisation: Normalisation
    train: Split
    test: Split
    notes: tuple[str, ...]
    """One line each, for the user and the report: what was converted or left out, and where the
    images are kept."""
    recipe: Recipe
    """How an image file becomes the pixels that the network takes."""
    test_files: tuple[str, ...] = ()
    """The image files of the test split, if it consists of files."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image: channels, height, width."""
        return self.channels, self.height, self.width


def too_large_a_batch(batch_size: int, num_training: int) -> UsageError:
    """Return the error that the batch is too large."""
    what = f"data.batch_size {batch_size} is more than the {num_training} training images"
    return UsageError(f"{what}; set it to {num_training} or less")
