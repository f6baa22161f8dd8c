"""CIFAR-100: 32 x 32, RGB, a hundred classes (the fine ones)."""

from torchvision.datasets import CIFAR100

from pipeline.config.sections import Data
from pipeline.data.cifar import read_cifar
from pipeline.data.dataset import Progress, Source


def read(options: Data, progress: Progress) -> Source:
    """From ROOT/cifar-100-python."""
    return read_cifar(CIFAR100, options)
