"""Shuffling and augmentation: what a resumed run sees is what the uninterrupted one would have seen."""

from collections.abc import Iterator

import pytest
import torch

from export.errors import UsageError
from pipeline.config.sections import Augment
from pipeline.data import Split, TrainingBatches
from pipeline.data.images import Draws, Images, MemoryImages, Shape

BOTH = Augment(flip=True, crop_padding=1)


def numbered(num: int) -> Split:
    """Images whose pixels and label are their index."""
    labels = torch.arange(num)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(num, 1, 3, 3).contiguous()
    return Split(MemoryImages(pixels), labels, torch.device("cpu"))


def unlike(num: int) -> Split:
    pixels = torch.randint(0, 256, (num, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(MemoryImages(pixels), torch.arange(num), torch.device("cpu"))


def labels_of(batches: TrainingBatches, epoch: int) -> list[int]:
    return [int(label) for _, labels in batches.epoch(epoch) for label in labels]


def test_an_epoch_is_a_permutation_without_what_does_not_fill_a_batch() -> None:
    batches = TrainingBatches(numbered(11), 4, Augment(), seed=3)
    assert batches.steps_per_epoch == 2
    seen = labels_of(batches, 0)
    assert len(set(seen)) == 8
    assert seen != sorted(seen)


def test_images_and_labels_stay_together() -> None:
    for images, labels in TrainingBatches(numbered(8), 4, Augment(), seed=0).epoch(0):
        assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_order_depends_on_seed_and_epoch_only() -> None:
    one = TrainingBatches(numbered(50), 10, Augment(), seed=1)
    torch.manual_seed(5)
    assert labels_of(one, 2) == labels_of(TrainingBatches(numbered(50), 10, BOTH, seed=1), 2)
    assert labels_of(one, 2) != labels_of(one, 3)
    assert labels_of(one, 2) != labels_of(TrainingBatches(numbered(50), 10, Augment(), seed=2), 2)


def test_every_sample_is_seen_in_some_epoch() -> None:
    batches = TrainingBatches(numbered(11), 4, Augment(), seed=0)
    assert {label for epoch in range(20) for label in labels_of(batches, epoch)} == set(range(11))


@pytest.mark.parametrize("first_step", [0, 1, 4, 5])
def test_a_resumed_epoch_goes_on_with_the_same_bytes(first_step: int) -> None:
    batches = TrainingBatches(unlike(43), 8, BOTH, seed=7)
    whole = list(batches.epoch(3))
    resumed = list(batches.epoch(3, first_step))
    assert len(resumed) == 5 - first_step
    for (a, one), (b, other) in zip(whole[first_step:], resumed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(one, other)


class Recording(Images):
    """Notes the random numbers that come with what is wanted."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.draws: list[list[int]] = []

    @property
    def num_images(self) -> int:
        return self._images.num_images

    @property
    def shape(self) -> Shape:
        return self._images.shape

    def batches(self, order: torch.Tensor, batch_size: int, device: torch.device, draws: Draws = None) -> Iterator[torch.Tensor]:
        assert draws is not None
        assert len(draws) == len(order)
        self.draws.append(draws.tolist())
        return self._images.batches(order, batch_size, device)


def test_each_image_of_each_epoch_has_a_random_number_of_its_own_and_a_resumed_epoch_the_same() -> None:
    plain = numbered(20)
    recording = Recording(plain.images)
    split = Split(recording, plain.labels, plain.device)
    for seed, epoch, first_step in ((1, 0, 0), (1, 1, 0), (2, 0, 0), (1, 1, 2)):
        assert len(list(TrainingBatches(split, 4, Augment(), seed).epoch(epoch, first_step))) == 5 - first_step
    *whole, resumed = recording.draws
    assert resumed == whole[1][8:]
    assert len({draw for draws in whole for draw in draws}) == 3 * 20


def test_batches_leave_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    list(TrainingBatches(unlike(20), 8, BOTH, seed=7).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_start_beyond_the_epoch_is_a_bug() -> None:
    with pytest.raises(ValueError, match="steps 0 to 2, got 3"):
        list(TrainingBatches(numbered(11), 4, Augment(), seed=0).epoch(0, 3))


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size 12 is more than the 11 training images"):
        TrainingBatches(numbered(11), 12, Augment(), seed=0)


@pytest.mark.parametrize(("num", "batch_size"), [(11, 4), (9, 4), (8, 4), (7, 4), (5, 5), (50, 7)])
def test_the_whole_set_is_every_image_once_mixed_and_never_in_a_small_batch(num: int, batch_size: int) -> None:
    batches = TrainingBatches(numbered(num), batch_size, BOTH, seed=3)
    found = list(batches.whole_set())
    seen = [int(label) for _, labels in found for label in labels]
    assert sorted(seen) == list(range(num))
    assert num < 8 or seen != sorted(seen)
    sizes = [len(labels) for _, labels in found]
    assert min(sizes) >= batch_size
    assert max(sizes) - min(sizes) <= 1
    for images, labels in found:  # as they are: neither cropped nor mirrored
        assert torch.equal(images, labels.to(torch.uint8)[:, None, None, None].expand_as(images))
    again = [int(label) for _, labels in TrainingBatches(numbered(num), batch_size, Augment(), seed=3).whole_set() for label in labels]
    assert again == seen
