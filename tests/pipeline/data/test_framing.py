"""Which part of an image is taken: torchvision's transforms on the same images, and its rule for random parts."""

import math
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from pipeline.data.decoding import Framing, random_box

SIZES = [(40, 30), (31, 47), (33, 33), (64, 25), (24, 24)]
"""Width and height."""
USUAL = (0.08, 1.0)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "cut"), [(32, 28), (25, 24), (24, 24), (19, 8)])
def test_the_tested_part_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], resize: int, cut: int) -> None:
    image = picture(*size)
    theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(cut)])(image)
    ours = Framing(cut, resize).framed(image, None)
    assert ours.size == (cut, cut)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert np.array_equal(np.asarray(Framing(cut, resize, USUAL).framed(image, None)), np.asarray(theirs))


@pytest.mark.parametrize("size", SIZES)
def test_a_random_part_is_cut_out_and_scaled_as_torchvision_does(size: tuple[int, int]) -> None:
    image = picture(*size)
    for draw in range(20):
        left, top, right, bottom = random_box(*size, USUAL, Random(draw))
        theirs = F.resized_crop(image, top, left, bottom - top, right - left, [16, 16])
        assert np.array_equal(np.asarray(Framing(16, area=USUAL).framed(image, draw)), np.asarray(theirs))


def test_without_random_parts_a_draw_changes_nothing() -> None:
    image = picture(40, 30)
    assert np.array_equal(np.asarray(Framing(16).framed(image, 5)), np.asarray(Framing(16).framed(image, None)))


@pytest.mark.parametrize("area", [USUAL, (0.25, 0.5)])
def test_random_parts_lie_inside_with_the_areas_and_ratios_of_the_rule(area: tuple[float, float]) -> None:
    width, height = 500, 400
    boxes = np.array([random_box(width, height, area, Random(draw)) for draw in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert right.max() <= width
    assert bottom.max() <= height
    shares = (right - left) * (bottom - top) / (width * height)
    ratios = (right - left) / (bottom - top)
    assert area[0] - 0.005 < shares.min() < area[0] + 0.02
    assert area[1] - 0.05 < shares.max() < area[1] + 0.005
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios)).max() < math.log(4 / 3) + 0.02


def test_random_parts_are_distributed_as_torchvisions() -> None:
    """Deciles of share, ratio and place of 4,000 parts each; two samples of this size differ by up to about 0.03 in them."""
    width, height = 500, 400
    torch.manual_seed(0)
    theirs = np.array([transforms.RandomResizedCrop.get_params(picture(width, height), list(USUAL), [3 / 4, 4 / 3]) for _ in range(4000)])
    top, left, high, wide = theirs.T
    ours = np.array([random_box(width, height, USUAL, Random(draw)) for draw in range(4000)])
    ours_wide, ours_high = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    pairs = [
        (wide * high / (width * height), ours_wide * ours_high / (width * height)),
        (np.log(wide / high), np.log(ours_wide / ours_high)),
        (left / width, ours[:, 0] / width),
        (top / height, ours[:, 1] / height),
    ]
    deciles = np.linspace(0.1, 0.9, 9)
    for a, b in pairs:
        assert np.abs(np.quantile(a, deciles) - np.quantile(b, deciles)).max() < 0.04


@pytest.mark.parametrize("size", [(1000, 30), (30, 1000), (600, 30)])
def test_where_no_part_fits_it_is_torchvisions_centre(size: tuple[int, int]) -> None:
    top, left, high, wide = transforms.RandomResizedCrop.get_params(Image.new("L", size), [1.0, 1.0], [3 / 4, 4 / 3])
    assert random_box(*size, (1.0, 1.0), Random(0)) == (left, top, left + wide, top + high)
