"""Street View House Numbers (SVHN), cropped digits of 32 x 32, RGB.

The authors' MATLAB files are read by torchvision's class.
"""

from pathlib import Path

import torch
from torchvision.datasets import SVHN
from torchvision.datasets.utils import download_url

from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.images import MemoryImages
from pipeline.data.published import NotFetchedError, fetch, require_published


def read(options: Data, progress: Progress) -> Source:
    """Read ROOT/{train,test}_32x32.mat, 73,257 and 26,032 images.

    With `extra`, the 531,131 images of ROOT/extra_32x32.mat are used for training too.
    """
    splits = ("train", "extra") if options.extra else ("train",)
    for split in (*splits, "test"):
        if options.download:
            _fetch(options.root, split)
        _require_file(options.root, split)
    return Source(tuple(map(str, range(10))), _labelled(options.root, splits), _labelled(options.root, ("test",)))


def _fetch(root: str, split: str) -> None:
    url, name, md5 = SVHN.split_list[split]
    fetch("svhn", url, root, lambda: download_url(url, root, name, md5))


def _require_file(root: str, split: str) -> None:
    url, name, md5 = SVHN.split_list[split]
    path = Path(root) / name
    how = f"set data.download: true, or fetch {url} into {root}"
    if not path.exists():
        raise NotFetchedError(f"no {split} split of svhn at {path}; {how}")
    require_published(path, md5, f"remove it, then {how}")


def _labelled(root: str, splits: tuple[str, ...]) -> LabelledImages:
    parts = [_opened(root, split) for split in splits]
    pixels, labels = (torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*parts, strict=True))
    return LabelledImages(MemoryImages(pixels), labels)


def _opened(root: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep only the tensors of what torchvision opened, because the extra split takes 1.6 GB."""
    found = SVHN(root, split)
    return torch.from_numpy(found.data).contiguous(), torch.from_numpy(found.labels)
