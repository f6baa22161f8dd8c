"""CIFAR-10 in its own file format, read by torchvision's class.

The files are pickles of the data set's authors; torchvision compares their md5 before it opens them.
"""

import warnings
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.images import MemoryImages


def read(options: Data, progress: Progress) -> Source:
    """The official split: 50,000 images for training, 10,000 for testing."""
    if options.download:
        _download(options.root)
    _require_files(Path(options.root) / CIFAR10.base_folder)
    train, test = _opened(options.root, train=True), _opened(options.root, train=False)
    return Source(tuple(train.classes), _labelled(train), _labelled(test))


def _download(root: str) -> None:
    try:
        CIFAR10(root, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"cifar10 could not be fetched from {CIFAR10.url} into {root} ({reason}); fetch and unpack it there by hand") from error


def _require_files(folder: Path) -> None:
    how = f"set data.download: true, or unpack {CIFAR10.filename} into {folder.parent}"
    if not folder.is_dir():
        raise UsageError(f"no cifar10 at {folder}; {how}")
    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    for name, md5 in files:
        if not check_integrity(folder / name, md5):
            what = "is not the data set's file: its md5 differs" if (folder / name).exists() else "is missing"
            raise DamagedError(f"{folder / name} {what}; remove {folder}, then {how}")


def _opened(root: str, *, train: bool) -> CIFAR10:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 complains of pickles as old as these, which say 0 where it wants False.
        warnings.filterwarnings("ignore", r"dtype\(\): align should be passed")
        return CIFAR10(root, train=train)


def _labelled(split: CIFAR10) -> LabelledImages:
    pixels = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(MemoryImages(pixels), torch.tensor(split.targets, dtype=torch.int64))
