"""CIFAR-10: 32 x 32, RGB, ten classes."""

from torchvision.datasets import CIFAR10

from pipeline.config.sections import Data
from pipeline.data.cifar import read_cifar
from pipeline.data.dataset import Progress, Source


def read(options: Data, progress: Progress) -> Source:
    """From ROOT/cifar-10-batches-py."""
    return read_cifar(CIFAR10, options)
