"""scikit-learn's 1,797 handwritten digits, 8 x 8, which come with the package: the data set that needs no network."""

import torch
from sklearn.datasets import load_digits

from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.images import MemoryImages

TEST_EVERY = 5


def read(options: Data, progress: Progress) -> Source:
    """Every fifth sample of each class, in file order, is for testing. A value v of 0..16 becomes min(16 v, 255)."""
    values, targets = load_digits(return_X_y=True)
    pixels = torch.from_numpy(values).mul(16).clamp(max=255).to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).to(torch.int64)
    is_test = every_nth_of_its_class(labels, TEST_EVERY)
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        train=LabelledImages(MemoryImages(pixels[~is_test]), labels[~is_test]),
        test=LabelledImages(MemoryImages(pixels[is_test]), labels[is_test]),
    )


def every_nth_of_its_class(labels: torch.Tensor, n: int) -> torch.Tensor:
    """True for the n-th, 2n-th, 3n-th ... sample of each class: a rule that no library's random numbers can change."""
    classes = torch.arange(int(labels.max()) + 1)
    of_class = (labels[:, None] == classes).to(torch.int64)
    rank = (of_class.cumsum(0) * of_class).sum(1)
    return (rank % n).eq(0)
