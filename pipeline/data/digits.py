"""The built-in data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

It comes with the package and needs no network access.
"""

from dataclasses import replace

import torch
from sklearn.datasets import load_digits

from export.preprocess import SIXTEENTHS, recipe_for
from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.images import MemoryImages

TEST_EVERY = 5


def read(options: Data, progress: Progress) -> Source:
    """Take every fifth sample of each class, in file order, for testing.

    A value v of 0..16 becomes min(16 v, 255).
    """
    values, targets = load_digits(return_X_y=True)
    pixels = torch.from_numpy(values).mul(16).clamp(max=255).to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).to(torch.int64)
    is_test = every_nth_of_its_class(labels, TEST_EVERY)
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        train=LabelledImages(MemoryImages(pixels[~is_test]), labels[~is_test]),
        test=LabelledImages(MemoryImages(pixels[is_test]), labels[is_test]),
        recipe=replace(recipe_for((1, 8, 8)), trained_on=SIXTEENTHS),
    )


def every_nth_of_its_class(labels: torch.Tensor, n: int) -> torch.Tensor:
    """Return True for the n-th, 2n-th, 3n-th ... sample of each class.

    No library's random numbers can change this rule.
    """
    classes = torch.arange(int(labels.max()) + 1)
    of_class = (labels[:, None] == classes).to(torch.int64)
    rank = (of_class.cumsum(0) * of_class).sum(1)
    return (rank % n).eq(0)
