"""Samples for a check: images that are hostile to numerical errors, and the hash of what was run.

Takes the shape of an image, or batches of arrays. Knows no data set and no runtime.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class NamedImages:
    """Images of one shape, each with a name, and how they were made."""

    names: tuple[str, ...]
    images: Pixels
    description: str


def hostile_images(shape: tuple[int, int, int], num_noise: int = 8, seed: int = 0) -> NamedImages:
    """Images of C x H x W bytes at the extremes of what a network can be shown."""
    images = {
        "all 0": np.zeros(shape, np.uint8),
        "all 255": np.full(shape, 255, np.uint8),
        **_checkerboards(shape),
        **_single_pixels(shape),
        **_ramps(shape),
        **_noise(shape, num_noise, seed),
    }
    description = (
        "hostile: all 0, all 255, checkerboards of 0 and 255 in both phases, one pixel of 255 in each corner and in "
        "the centre, ramps from 0 to 255 in both directions, "
        f"{num_noise} images of uniform noise (NumPy's PCG64, seed {seed})"
    )
    return NamedImages(tuple(images), np.stack(list(images.values())), description)


class SampleHash:
    """SHA-256 over dtype, shape and bytes of samples. How they were batched makes no difference."""

    def __init__(self) -> None:
        self.num_samples = 0
        self._hashes: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}

    def update(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Take in one batch. Every input has one sample per row."""
        for name, rows in batch.items():
            running = self._hashes.setdefault(name, hashlib.sha256())
            kind = f"{rows.dtype.str} {rows.dtype.name} {rows.shape[1:] if rows.ndim else 'single'}"
            if self._kinds.get(name) != kind:
                running.update(kind.encode())
                self._kinds[name] = kind
            running.update(np.ascontiguousarray(rows).tobytes())
        self.num_samples += num_samples(batch)

    @property
    def hexdigest(self) -> str:
        whole = hashlib.sha256(str(self.num_samples).encode())
        for name in sorted(self._hashes):
            whole.update(name.encode() + b"\0" + self._hashes[name].digest())
        return whole.hexdigest()


def num_samples(batch: Mapping[str, NDArray[Any]]) -> int:
    """How many samples a batch holds: its rows, or one if nothing in it has rows."""
    return max((len(rows) if rows.ndim else 1 for rows in batch.values()), default=0)


def _checkerboards(shape: tuple[int, int, int]) -> dict[str, Pixels]:
    rows, columns = np.indices(shape[1:])
    board = np.broadcast_to((rows + columns) % 2 * 255, shape).astype(np.uint8)
    return {"checkerboard": board, "checkerboard, other phase": 255 - board}


def _single_pixels(shape: tuple[int, int, int]) -> dict[str, Pixels]:
    _, height, width = shape
    places = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1), (height // 2, width // 2)]
    images = {}
    for row, column in dict.fromkeys(places):
        image = np.zeros(shape, np.uint8)
        image[:, row, column] = 255
        images[f"pixel at {row}, {column}"] = image
    return images


def _ramps(shape: tuple[int, int, int]) -> dict[str, Pixels]:
    _, height, width = shape
    across, down = np.linspace(0, 255, width).astype(np.uint8), np.linspace(0, 255, height).astype(np.uint8)
    return {
        "ramp across": np.broadcast_to(across, shape).copy(),
        "ramp down": np.broadcast_to(down[:, None], shape).copy(),
    }


def _noise(shape: tuple[int, int, int], number: int, seed: int) -> dict[str, Pixels]:
    generator = np.random.Generator(np.random.PCG64(seed))
    return {f"noise {i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(number)}
