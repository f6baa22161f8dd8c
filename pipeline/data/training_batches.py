"""The training split in shuffled, augmented batches: the same for the same (seed, epoch, step), interrupted or not."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.config.sections import Augment
from pipeline.data.augmentation import augmented
from pipeline.data.dataset import Batch, Split, too_large_a_batch
from pipeline.data.seeding import generator_for


@dataclass(frozen=True)
class TrainingBatches:
    """Epochs of full batches. What does not fill one is left out (other samples each epoch): they would weigh more."""

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
        """The batches of an epoch (counted from 0), from its `first_step` on."""
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"an epoch has steps 0 to {self.steps_per_epoch}, got {first_step}")
        order, draws = (each[first_step * self.batch_size :] for each in (self._order(epoch), self._draws(epoch)))
        first_global_step = epoch * self.steps_per_epoch + first_step
        for step, (images, labels) in enumerate(self.split.batches_in_order(order, self.batch_size, draws), first_global_step):
            yield augmented(images, self.augment, self.seed, step), labels

    def whole_set(self) -> Iterator[Batch]:
        """Every image once, as evaluation sees it, shuffled; the batches differ by one image at most, and none is smaller than a training batch."""
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
