"""The built-in digits: their pixels and their split never change."""

from hashlib import sha256

import torch
from sklearn.datasets import load_digits

from pipeline.config.sections import Data
from pipeline.data import open_data
from pipeline.data.digits import every_nth_of_its_class


def test_pixels_are_sixteen_times_the_values() -> None:
    data = open_data(Data(), torch.device("cpu"))
    values = torch.from_numpy(load_digits().images)
    (images, labels), *_ = data.train.batches(1)
    assert images.shape == (1, 1, 8, 8)
    assert torch.equal(images[0, 0].double(), (16 * values[0]).clamp(max=255))
    assert labels.tolist() == [0]
    assert max(int(images.max()) for images, _ in data.train.batches(500)) == 255


def test_the_split_is_fixed_and_stratified() -> None:
    data = open_data(Data(), torch.device("cpu"))
    assert (data.train.num_samples, data.test.num_samples) == (1442, 355)
    assert data.test.labels.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    images, labels = next(data.test.batches(355))
    fingerprint = sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert fingerprint == "d9a6e224f8e2cc5fb57e24c7f4cef856254d84fb9193826f19bf075282e6945c"


def test_every_nth_counts_within_each_class() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    assert every_nth_of_its_class(labels, 2).tolist() == [False, False, True, False, True, False, True]
