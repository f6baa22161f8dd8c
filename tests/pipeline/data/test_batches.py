"""Training batches: a resumed run sees what an uninterrupted one would have seen.

Each augmentation gives only what it may give, and all of that.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as torchvision_functional

from export.errors import UsageError
from pipeline.config.sections import Augment
from pipeline.data import Split, TrainingBatches
from pipeline.data.batches import _rotated, augmented
from pipeline.data.images import Draws, Images, MemoryImages, Shape

IMAGES = torch.randint(1, 256, (64, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def index_of(image: torch.Tensor, candidates: list[torch.Tensor]) -> int:
    (index,) = [i for i, candidate in enumerate(candidates) if torch.equal(image, candidate)]
    return index


def windows(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    padded = F.pad(image, (padding,) * 4)
    places = range(2 * padding + 1)
    return [padded[:, top : top + 5, left : left + 7] for top in places for left in places]


def test_nothing_asked_nothing_done() -> None:
    assert augmented(IMAGES, Augment(), seed=0, step=0) is IMAGES


def test_flip_mirrors_about_half_of_the_images_each_as_a_whole() -> None:
    changed = augmented(IMAGES, Augment(flip=True), seed=0, step=0)
    mirrored = [index_of(image, [original, original.flip(2)]) for image, original in zip(changed, IMAGES, strict=True)]
    assert changed.dtype == torch.uint8
    assert 20 <= sum(mirrored) <= 44


def test_crop_takes_every_window_of_the_padded_image() -> None:
    changed = augmented(IMAGES, Augment(crop_padding=1), seed=0, step=0)
    taken = {index_of(image, windows(original, 1)) for image, original in zip(changed, IMAGES, strict=True)}
    assert (changed.shape, changed.dtype) == (IMAGES.shape, torch.uint8)
    assert taken == set(range(9))


def test_crop_and_flip_together_are_a_mirrored_window() -> None:
    changed = augmented(IMAGES, Augment(flip=True, crop_padding=2), seed=0, step=0)
    for image, original in zip(changed, IMAGES, strict=True):
        plain = windows(original, 2)
        index_of(image, plain + [window.flip(2) for window in plain])


def test_draws_depend_on_seed_and_step() -> None:
    options = Augment(flip=True, crop_padding=1)
    assert torch.equal(augmented(IMAGES, options, 1, 2), augmented(IMAGES, options, 1, 2))
    assert not torch.equal(augmented(IMAGES, options, 1, 2), augmented(IMAGES, options, 1, 3))
    assert not torch.equal(augmented(IMAGES, options, 1, 2), augmented(IMAGES, options, 2, 2))


def test_switching_one_off_leaves_the_other_as_it_was() -> None:
    both = augmented(IMAGES, Augment(flip=True, crop_padding=1), 0, 0)
    flipped_after = augmented(augmented(IMAGES, Augment(crop_padding=1), 0, 0), Augment(flip=True), 0, 0)
    assert torch.equal(both, flipped_after)


def test_the_layout_is_contiguous() -> None:
    assert augmented(IMAGES, Augment(flip=True, crop_padding=1), 0, 0).is_contiguous()


def turned_in_numpy(image: np.ndarray, angle: float) -> np.ndarray:
    """Pixel by pixel: the value at (down, right) from the centre comes from where the reverse turn
    leads."""
    _, height, width = image.shape
    turned = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            down, right = row - (height - 1) / 2, column - (width - 1) / 2
            from_row = round(math.sin(angle) * right + math.cos(angle) * down + (height - 1) / 2)
            from_column = round(math.cos(angle) * right - math.sin(angle) * down + (width - 1) / 2)
            if 0 <= from_row < height and 0 <= from_column < width:
                turned[:, row, column] = image[:, from_row, from_column]
    return turned


def test_rotation_is_that_of_a_literal_loop() -> None:
    angles = torch.linspace(-math.pi, math.pi, len(IMAGES), dtype=torch.float64)
    for image, original, angle in zip(_rotated(IMAGES, angles), IMAGES, angles.tolist(), strict=True):
        assert np.array_equal(image.numpy(), turned_in_numpy(original.numpy(), angle))


def test_rotation_is_torchvisions_but_for_pixels_half_way() -> None:
    images = torch.randint(1, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    degrees = [*torch.linspace(-15, 15, 19).tolist(), 90.0]
    ours = _rotated(images, torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)))
    theirs = torch.stack([torchvision_functional.rotate(image, angle) for image, angle in zip(images, degrees, strict=True)])
    assert (ours != theirs).double().mean() < 1e-3
    assert torch.equal(ours[-1], images[-1].rot90(1, (1, 2)))


def test_angles_are_drawn_up_to_the_given_degrees_either_way() -> None:
    """A bright spot at the right end of the middle row shows the angle.

    The angle follows from the row in whose middle the spot ends.
    """
    images = torch.zeros((256, 1, 101, 101), dtype=torch.uint8)
    images[:, :, 48:53, 94:99] = 1
    turned = augmented(images, Augment(rotation=15), 0, 0).double().sum((1, 3))
    rows = (turned * torch.arange(101)).sum(1) / turned.sum(1) - 50
    angles = torch.rad2deg(torch.asin(rows / 46))
    assert -15.5 < angles.min() < -14
    assert 14 < angles.max() < 15.5
    assert angles.mean().abs() < 2


def test_rotation_comes_last_and_leaves_the_other_draws() -> None:
    both = augmented(IMAGES, Augment(flip=True, rotation=30), 0, 0)
    assert torch.equal(both, augmented(augmented(IMAGES, Augment(flip=True), 0, 0), Augment(rotation=30), 0, 0))
    assert (both.dtype, both.is_contiguous()) == (torch.uint8, True)
    assert not torch.equal(both, augmented(IMAGES, Augment(flip=True, rotation=30), 0, 1))


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
    """Records the random numbers that come with a request."""

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
