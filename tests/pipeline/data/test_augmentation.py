"""Flip and padded crop: each image is one of the windows it may be, and all of them occur."""

import torch
from torch.nn import functional as F

from pipeline.config.sections import Augment
from pipeline.data.augmentation import augmented

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
