"""CIFAR-10 and CIFAR-100 in their own file format, read by torchvision's classes.

Images are 32 x 32, RGB, of ten or a hundred (fine) classes. The files are pickles from the authors
of the data sets; their md5 is compared before they are opened.
"""

import warnings
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.images import MemoryImages
from pipeline.data.published import NotFetchedError, fetch, require_published


def read_cifar(form: type[CIFAR10], options: Data) -> Source:
    """Read the official split: 50,000 images for training, 10,000 for testing."""
    if options.download:
        fetch(options.name, form.url, options.root, lambda: form(options.root, download=True))
    _require_files(form, Path(options.root) / form.base_folder, options.name)
    train, test = _opened(form, options.root, train=True), _opened(form, options.root, train=False)
    return Source(tuple(train.classes), _labelled(train), _labelled(test))


def _require_files(form: type[CIFAR10], folder: Path, name: str) -> None:
    how = f"set data.download: true, or unpack {form.filename} into {folder.parent}"
    if not folder.is_dir():
        raise NotFetchedError(f"no {name} at {folder}; {how}")
    for file, md5 in [*form.train_list, *form.test_list, [form.meta["filename"], form.meta["md5"]]]:
        require_published(folder / file, md5, f"remove {folder}, then {how}")


def _opened(form: type[CIFAR10], root: str, *, train: bool) -> CIFAR10:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warns about pickles as old as these, which have 0 where it expects
        # False.
        warnings.filterwarnings("ignore", r"dtype\(\): align should be passed")
        return form(root, train=train)


def _labelled(split: CIFAR10) -> LabelledImages:
    pixels = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(MemoryImages(pixels), torch.tensor(split.targets, dtype=torch.int64))


def read_cifar10(options: Data, progress: Progress) -> Source:
    """Read it from ROOT/cifar-10-batches-py."""
    return read_cifar(CIFAR10, options)


def read_cifar100(options: Data, progress: Progress) -> Source:
    """Read it from ROOT/cifar-100-python."""
    return read_cifar(CIFAR100, options)
