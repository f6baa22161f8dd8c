"""Batches for training: shuffled, cut to size and augmented.

Takes a split that is on its device. Each batch depends on (seed, epoch, step) alone. Knows no
network and no method.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch.nn import functional as F

from pipeline.config.sections import Augment
from pipeline.data.dataset import Batch, Split, too_large_a_batch


def generator_for(seed: int, purpose: str, count: int) -> torch.Generator:
    """Return a generator of its own for the count-th time that `purpose` needs random numbers.

    It is a CPU generator, so that every device gets the same numbers.
    """
    digest = blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def augmented(images: torch.Tensor, options: Augment, seed: int, step: int) -> torch.Tensor:
    """Crop each image at its own place, mirror some, and rotate each by its own angle.

    Switching one of these off leaves the random draws of the others unchanged.
    """
    num, padding = len(images), options.crop_padding
    if padding:
        images = _cropped(images, padding, _draws(num, 2, 2 * padding + 1, generator_for(seed, "crop", step)).to(images.device))
    if options.flip:
        images = _flipped(images, _draws(num, 1, 2, generator_for(seed, "flip", step)).to(images.device))
    if options.rotation:
        share = torch.rand(num, dtype=torch.float64, generator=generator_for(seed, "rotation", step))
        images = _rotated(images, torch.deg2rad(options.rotation * (2 * share - 1)))
    return images


def _draws(num: int, per_image: int, below: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, below, (num, per_image), generator=generator)


def _cropped(images: torch.Tensor, padding: int, corners: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return windows[samples, :, corners[:, 0], corners[:, 1]]


def _flipped(images: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    return torch.where(mirror.bool()[:, :, None, None], images.flip(3), images)


def _rotated(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate images counter-clockwise about their centre, by angles in radians.

    Each pixel takes the value of the nearest source pixel, or black where the source is outside.
    Computed in float64, with products and sums that every device rounds alike.
    """
    height, width = images.shape[2:]
    cosine, sine = (turn.to(images.device)[:, None, None] for turn in (angles.cos(), angles.sin()))
    down = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float64, device=images.device) - (width - 1) / 2
    row = (cosine * down + sine * right + (height - 1) / 2).round().long()
    column = (cosine * right - sine * down + (width - 1) / 2).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = torch.where(inside, row * width + column, 0).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return torch.where(inside[:, None], images.flatten(2).gather(2, source).view_as(images), 0)


@dataclass(frozen=True)
class TrainingBatches:
    """Epochs of full batches.

    Samples that do not fill a batch are left out (different ones in each epoch), because each of
    them would weigh more than the others.
    """

    split: Split
    batch_size: int
    augment: Augment
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.split.num_samples:
            raise too_large_a_batch(self.batch_size, self.split.num_samples)

    @property
    def steps_per_epoch(self) -> int:
        return self.split.num_samples // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 0), starting at its `first_step`."""
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"an epoch has steps 0 to {self.steps_per_epoch}, got {first_step}")
        order, draws = (each[first_step * self.batch_size :] for each in (self._order(epoch), self._draws(epoch)))
        first_global_step = epoch * self.steps_per_epoch + first_step
        for step, (images, labels) in enumerate(self.split.batches_in_order(order, self.batch_size, draws), first_global_step):
            yield augmented(images, self.augment, self.seed, step), labels

    def whole_set(self) -> Iterator[Batch]:
        """Yield every image once, shuffled, as evaluation sees it.

        Batch sizes differ by at most one image, and no batch is smaller than a training batch.
        """
        num, number = self.split.num_samples, self.steps_per_epoch
        size, num_larger = divmod(num, number)
        order = torch.randperm(num, generator=generator_for(self.seed, "whole set", 0))
        cut = num_larger * (size + 1)
        for part, batch_size in ((order[:cut], size + 1), (order[cut:], size)):
            if len(part):
                yield from self.split.batches_in_order(part, batch_size)

    def _order(self, epoch: int) -> torch.Tensor:
        shuffled = torch.randperm(self.split.num_samples, generator=generator_for(self.seed, "order", epoch))
        return shuffled[: self.steps_per_epoch * self.batch_size]

    def _draws(self, epoch: int) -> torch.Tensor:
        return torch.randint(2**62, (self.steps_per_epoch * self.batch_size,), generator=generator_for(self.seed, "draws", epoch))
