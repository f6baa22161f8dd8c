"""Flip and padded crop: each image is one of the windows it may be, and all of them occur. Rotation: as NumPy and torchvision turn."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as torchvision_functional

from pipeline.config.sections import Augment
from pipeline.data.batches import _rotated, augmented

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
    """Pixel by pixel: what stands at (down, right) from the centre comes from where a turn back by the angle leads."""
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
    """A bright spot at the right end of the middle row shows its angle by the row in whose middle it comes to stand."""
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
