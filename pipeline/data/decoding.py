"""Image files of a data set: their headers, and their pixels by the recipe that a bundle states.

In training a random part may be taken instead of the recipe's. Takes paths; what a worker process
cannot read is returned as a value. Knows no data set.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeVar

import torch
from PIL import Image

from export.preprocess import (
    REFUSE,
    TURNS,
    ImageError,
    Pixels,
    Recipe,
    as_pixels,
    framed,
    has_16_bits,
    is_gray,
    opened,
    orientation_of,
    require_readable,
    scaled,
    upright,
)

_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_LIES = range(5, 9)
"""The orientations that swap width and height."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Area = tuple[float, float]
"""The least and the largest share of the image that a random part has."""
Result = TypeVar("Result")


def random_box(width: int, height: int, area: Area, random: Random) -> Box:
    """Choose a random part by torchvision's rule.

    Draw an area and the logarithm of a ratio, both uniform, until the part fits; after ten attempts
    take the centre.
    """
    for _ in range(_ATTEMPTS):
        pixels = width * height * random.uniform(*area)
        ratio = math.exp(random.uniform(*map(math.log, _RATIOS)))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - high)
            return left, top, left + wide, top + high
    return _largest_in_the_centre(width, height)


def _largest_in_the_centre(width: int, height: int) -> Box:
    least, largest = _RATIOS
    wide, high = min(width, round(height * largest)), min(height, round(width / least))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


_ALPHA = "with transparency read without it"
_CONVERSIONS = {
    "LA": _ALPHA,
    "RGBA": _ALPHA,
    "P": "with a palette read as colour",
    "PA": "with a palette read as colour",
    "CMYK": "in CMYK converted without a colour profile",
    "YCbCr": "in YCbCr converted to RGB",
}
"""What is worth mentioning about the kinds of pixels that are converted."""


@dataclass(frozen=True)
class Header:
    """What an image file says about itself before its pixels are decoded.

    Width and height are those of the upright image.
    """

    width: int
    height: int
    gray: bool
    conversion: str
    """The conversion applied to its pixels, if it is worth mentioning."""
    turned: bool
    """Whether its EXIF orientation turns or mirrors it."""


@dataclass(frozen=True)
class UnreadableImage:
    """The reason, in one line, why a file cannot be used."""

    message: str


@dataclass(frozen=True)
class DecodeRequest:
    """A file and the random number that selects a part of it; None for the part used in testing."""

    path: str
    draw: int | None = None


@dataclass(frozen=True)
class Decoder:
    """Decodes files by a recipe; with an area, training gets random parts."""

    recipe: Recipe
    area: Area | None = None

    def __call__(self, files: Sequence[DecodeRequest]) -> torch.Tensor | UnreadableImage:
        pixels = torch.empty((len(files), *self.recipe.shape), dtype=torch.uint8)
        for target, wanted in zip(pixels.numpy(), files, strict=True):
            decoded = _or_unreadable(wanted.path, partial(self._decoded, draw=wanted.draw))
            if isinstance(decoded, UnreadableImage):
                return decoded
            target[:] = decoded
        return pixels

    def _decoded(self, image: Image.Image, draw: int | None) -> Pixels:
        return as_pixels(self.framed(upright(image, self.recipe), draw))

    def framed(self, image: Image.Image, draw: int | None) -> Image.Image:
        """Return the part that the random number `draw` selects.

        Without `draw`, or without random parts, return the recipe's part.
        """
        if self.area is None or draw is None:
            return framed(image, self.recipe)
        box = random_box(image.width, image.height, self.area, Random(draw))
        part = image.crop(box)
        return scaled(part, (self.recipe.width, self.recipe.height), (0, 0, *part.size))


def read_headers(paths: Sequence[str], sixteen_bits: str = REFUSE) -> list[Header | UnreadableImage]:
    """Return the header of each file, or the reason why it has none."""
    return [_or_unreadable(path, partial(_header, sixteen_bits=sixteen_bits)) for path in paths]


def printable(text: str) -> str:
    """Return the text, escaped if it would break a line or cannot be written as UTF-8."""
    return text if text.isprintable() else ascii(text)


def _header(image: Image.Image, sixteen_bits: str) -> Header:
    orientation = orientation_of(image)
    require_readable(image, sixteen_bits)
    width, height = image.size[::-1] if orientation in _LIES else image.size
    conversion = "of 16 bits read without the lower 8" if has_16_bits(image) else _CONVERSIONS.get(image.mode, "")
    return Header(width, height, is_gray(image), conversion, turned=orientation in TURNS)


def _or_unreadable(path: str, read: Callable[[Image.Image], Result]) -> Result | UnreadableImage:
    try:
        with opened(path) as image:
            return read(image)
    except ImageError as error:
        return UnreadableImage(f"{printable(path)} cannot be used: {error}; fix or remove it")
