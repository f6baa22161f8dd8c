"""Image folders that tests write for themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that makes ROOT/{train,test}/{cat,dog}/N.png.

    There are `num` images of each class, and each image has a single value of its own.
    """

    def make(num: int = 3, classes: tuple[str, ...] = ("cat", "dog"), size: tuple[int, int] = (6, 4)) -> Path:
        root = tmp_path / "set"
        for split in ("train", "test"):
            for label, name in enumerate(classes):
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(num):
                    value = 100 * label + 10 * i + (split == "test")
                    Image.new("RGB", size, (value, value + 1, value + 2)).save(folder / f"{i}.png")
        return root

    return make


@pytest.fixture
def noise() -> np.ndarray:
    """5 rows of 7 RGB pixels, all different."""
    return np.random.default_rng(0).permutation(105).astype(np.uint8).reshape(5, 7, 3)
