"""Samples as pictures: images of bytes and nothing else, with the pixels they have."""

import io

import numpy as np
import pytest
from PIL import Image

from deploy.report.differences import pictures_of

GRAY = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 3, 4)


@pytest.mark.parametrize(("image", "expected"), [(GRAY, GRAY[0]), (COLOUR, COLOUR.transpose(1, 2, 0))])
def test_the_pixels_are_those_of_the_sample(image: np.ndarray, expected: np.ndarray) -> None:
    (picture,) = pictures_of({7: {"image": image}}).values()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": GRAY.astype(np.float32)},
        {"x": np.zeros((2, 3, 4), np.uint8)},
        {"x": np.zeros(5, np.uint8)},
        {"x": np.zeros((1, 600, 600), np.uint8)},
        {"x": GRAY, "y": GRAY},
    ],
)
def test_what_is_no_image_has_no_picture(inputs: dict[str, np.ndarray]) -> None:
    assert pictures_of({0: inputs}) == {}
