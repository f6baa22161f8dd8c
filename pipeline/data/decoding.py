"""Decode an image, and take a part of it at a given size.

The part is the centre for testing, and a random part for training if requested. Takes paths of
image files and returns pixels; scaling is bilinear with antialiasing. Knows no data set.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Framing:
    """Brings any image to `size` x `size`."""

    size: int
    resize: int | None = None
    """What the shorter side is scaled to before the centre is cut out. None: the centre square is
    scaled."""
    area: tuple[float, float] | None = None
    """The least and the largest share of the image that a random part has. None: no random
    parts."""

    def framed(self, image: Image.Image, draw: int | None) -> Image.Image:
        """Return the part that the random number `draw` selects.

        Without `draw`, or without random parts, return the centre.
        """
        if self.area is not None and draw is not None:
            return _scaled(image.crop(random_box(image.width, image.height, self.area, Random(draw))), self.size, self.size)
        if self.resize is None:
            return self._centre_square(image)
        return self._centre(_with_shorter_side(image, self.resize))

    def _centre_square(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)

    def _centre(self, image: Image.Image) -> Image.Image:
        left, top = (round((length - self.size) / 2) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


def random_box(width: int, height: int, area: tuple[float, float], random: Random) -> Box:
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


def _with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Scale the image; the other side is rounded down."""
    shorter = min(image.size)
    return _scaled(image, *(side if length == shorter else int(side * length / shorter) for length in image.size))


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation. 1 is already upright, and other numbers have
no meaning."""
_LIES = range(5, 9)
"""The orientations that swap width and height."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Mode:
    """How the pixels of a file are read."""

    gray: bool
    conversion: str = ""
    """The conversion applied to them, if it is worth mentioning."""


_ALPHA = "with transparency read without it"
_MODES = {
    "1": Mode(gray=True),
    "L": Mode(gray=True),
    "LA": Mode(True, _ALPHA),
    "RGB": Mode(gray=False),
    "RGBA": Mode(False, _ALPHA),
    "P": Mode(False, "with a palette read as colour"),
    "PA": Mode(False, "with a palette read as colour"),
    "CMYK": Mode(False, "in CMYK converted without a colour profile"),
    "YCbCr": Mode(False, "in YCbCr converted to RGB"),
}


@dataclass(frozen=True)
class Header:
    """What an image file says about itself before its pixels are decoded.

    Width and height are those of the upright image.
    """

    width: int
    height: int
    mode: Mode
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
    """Decodes files to one shape; with a framing, a part of each image is brought to that shape.

    An image is turned upright as its EXIF orientation says. Gray from colour is ITU-R 601 luma. Of
    several frames, the first is used.
    """

    channels: int
    height: int
    width: int
    framing: Framing | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def __call__(self, files: Sequence[DecodeRequest]) -> torch.Tensor | UnreadableImage:
        pixels = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        for target, wanted in zip(pixels.numpy(), files, strict=True):
            decoded = _or_unreadable(wanted.path, partial(self._decoded, draw=wanted.draw))
            if isinstance(decoded, UnreadableImage):
                return decoded
            target[:] = decoded
        return pixels

    def _decoded(self, image: Image.Image, draw: int | None) -> np.ndarray:
        turn = _UPRIGHT.get(_orientation(image))
        plain = _converted(image, "L" if self.channels == 1 else "RGB")
        upright = plain if turn is None else plain.transpose(turn)
        sized = upright if self.framing is None else self.framing.framed(upright, draw)
        if sized.size != (self.width, self.height):
            raise ValueError(f"it is {sized.width}x{sized.height} and was {self.width}x{self.height} a moment ago")
        return np.asarray(sized).reshape(self.height, self.width, self.channels).transpose(2, 0, 1)


def read_headers(paths: Sequence[str]) -> list[Header | UnreadableImage]:
    """Return the header of each file, or the reason why it has none."""
    return [_or_unreadable(path, _header) for path in paths]


def printable(text: str) -> str:
    """Return the text, escaped if it would break a line or cannot be written as UTF-8."""
    return text if text.isprintable() else ascii(text)


def _header(image: Image.Image) -> Header:
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in _LIES else image.size
    return Header(width, height, _mode(image), turned=orientation in _UPRIGHT)


def _mode(image: Image.Image) -> Mode:
    mode, wide = _MODES.get(image.mode), _has_16_bits(image)
    if mode is None or wide:
        # Which 8 of the 16 bits matter depends on the image, so only its owner can choose.
        kind = f"{image.mode} of 16 bits" if wide else image.mode
        raise ValueError(f"its pixels are {kind}, not 8-bit gray, RGB, palette, CMYK or YCbCr; convert it")
    return mode


def _has_16_bits(image: Image.Image) -> bool:
    """Tell 16-bit colour from 8-bit colour.

    Pillow has no mode for 16-bit colour: it drops the low byte and reports RGB. The raw mode of the
    tiles shows the difference.
    """
    arguments = (tile.args for tile in getattr(image, "tile", []))
    raw_modes = (args[0] if isinstance(args, tuple) and args else args for args in arguments)
    return any(isinstance(raw, str) and raw.startswith(("RGB", "LA")) and ";16" in raw for raw in raw_modes)


def _orientation(image: Image.Image) -> int:
    # Read only EXIF data in front of the pixels: Pillow would decode a whole PNG to look for more.
    # Pillow turns a TIFF by itself.
    orientation = image.getexif().get(_ORIENTATION) if "exif" in image.info else None
    return orientation if isinstance(orientation, int) else 1


def _converted(image: Image.Image, mode: str) -> Image.Image:
    _mode(image)
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _or_unreadable(path: str, read: Callable[[Image.Image], Result]) -> Result | UnreadableImage:
    try:
        with _bombs_raise(), Image.open(path, formats=_FORMATS) as image:
            return read(image)
    # Pillow's plugins raise nearly any exception for damaged bytes: OSError, SyntaxError, ...
    except Exception as error:
        return UnreadableImage(f"{printable(path)} cannot be used: {_reason(path, error)}; fix or remove it")


@contextmanager
def _bombs_raise() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if Path(path).stat().st_size == 0 else f"it is not an image in one of {', '.join(_FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
