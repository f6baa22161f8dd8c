"""An image file becomes the pixels that a network takes (uint8, C x H x W), exactly by a recipe.

Training, `pipeline predict` and `pipeline verify` run this code, and every bundle has this file.
Needs Pillow and NumPy alone: it must not import anything of ours.
"""

import argparse
import hashlib
import io
import json
import math
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

VERSION = 1
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 89_478_485
"""The most pixels of a file, and of what it is scaled to before a part is cut out."""
WHOLE, CENTRE_SQUARE, SHORTER_SIDE = "whole image", "centre square", "shorter side"
ROUNDING = {
    WHOLE: "nothing is cut or scaled",
    CENTRE_SQUARE: "none: the square may begin at half a pixel",
    SHORTER_SIDE: "the longer side down, the corner of the part to the nearest pixel, half to even",
}
"""The framings, and what each does where numbers are not whole."""
UNCHANGED, SIXTEENTHS = "pixels of the data set", "min(16 v, 255) of the data set's values v"
REFUSE, HIGH_BYTE = "refuse", "high_byte"
Pixels = NDArray[np.uint8]
"""C x H x W."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "version": (VERSION,),
    "trained_on": ("image files", UNCHANGED, SIXTEENTHS),
    "formats": (FORMATS,),
    "most_pixels": (LARGEST,),
    "frame": ("first",),
    "sixteen_bits": (REFUSE, HIGH_BYTE),
    "transparency": ("dropped",),
    "palette": ("its colours",),
    "cmyk": ("Pillow, without a colour profile",),
    "colour": ("RGB", "L"),
    "luma": ("(19595 R + 38470 G + 7471 B + 32768) >> 16",),
    "orientation": ("EXIF in front of the pixels",),
    "framing": tuple(ROUNDING),
    "rounding": tuple(ROUNDING.values()),
    "filter": ("bilinear, antialiased, in bytes, the horizontal pass first",),
    "layout": ("C x H x W, uint8",),
}
_SIZES = ("height", "width", "resize")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a file becomes pixels.

    Fields with one possible value are in it so that other code can read what is done, and so that a
    later version can do something else.
    """

    version: int = VERSION
    trained_on: str = "image files"
    """Where training had its pixels from. Files are decoded in the same way in any case."""
    formats: tuple[str, ...] = FORMATS
    most_pixels: int = LARGEST
    frame: str = "first"
    sixteen_bits: str = REFUSE
    """Whether files with 16 bits per channel are refused, or give their high bytes."""
    transparency: str = "dropped"
    palette: str = "its colours"
    cmyk: str = "Pillow, without a colour profile"
    colour: str
    luma: str = "(19595 R + 38470 G + 7471 B + 32768) >> 16"
    """Gray from colour, in integers: ITU-R 601."""
    orientation: str = "EXIF in front of the pixels"
    framing: str
    rounding: str
    resize: int | None = None
    """The framing "shorter side": the length that this side is scaled to before the centre is cut
    out."""
    height: int
    width: int
    filter: str = "bilinear, antialiased, in bytes, the horizontal pass first"
    layout: str = "C x H x W, uint8"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (found := getattr(self, name)) not in allowed or isinstance(found, bool):
                raise ValueError(f"recipe: {name} is {found!r}; this version knows {', '.join(map(repr, allowed))}")
        for name in _SIZES:
            size = getattr(self, name)
            if (size is None and name != "resize") or (size is not None and (type(size) is not int or not 0 < size < 2**31)):
                raise ValueError(f"recipe: {name} is {size!r}, expected a number of pixels")
        if (self.resize is not None) != (self.framing == SHORTER_SIDE):
            raise ValueError(f"recipe: the framing {SHORTER_SIDE!r} goes with resize, and no other does; got {self.framing!r} and {self.resize!r}")
        if self.framing != WHOLE and self.height != self.width:
            raise ValueError(f"recipe: the framing {self.framing!r} gives squares, got height {self.height} and width {self.width}")
        if self.resize is not None and self.resize < self.height:
            raise ValueError(f"recipe: resize {self.resize} is less than {self.height}, which is cut out of it")
        if self.rounding != ROUNDING[self.framing]:
            raise ValueError(f"recipe: the framing {self.framing!r} has the rounding {ROUNDING[self.framing]!r}, got {self.rounding!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 1 if self.colour == "L" else 3, self.height, self.width

    @property
    def text(self) -> str:
        """The recipe as one line of JSON."""
        return json.dumps(asdict(self))


def recipe_for(shape: tuple[int, int, int], *, framing: str = CENTRE_SQUARE, resize: int | None = None, sixteen_bits: str = REFUSE) -> Recipe:
    """Return the recipe that gives pixels of this shape."""
    channels, height, width = shape
    return Recipe(
        colour="L" if channels == 1 else "RGB",
        framing=framing,
        rounding=ROUNDING[framing],
        resize=resize,
        height=height,
        width=width,
        sixteen_bits=sixteen_bits,
    )


def recipe_of(found: object) -> Recipe:
    """Return a recipe from what JSON holds; ValueError if this version does not know it."""
    if isinstance(found, Recipe):
        return found
    if not isinstance(found, Mapping):
        raise ValueError(f"a recipe is a JSON object, got {type(found).__name__}")
    if found.get("version") != VERSION:
        raise ValueError(f"the recipe has version {found.get('version')!r}; this code follows version {VERSION}")
    names = {field.name for field in fields(Recipe)}
    if different := sorted(map(str, names ^ found.keys())):
        raise ValueError(f"a recipe of version {VERSION} has {', '.join(sorted(names))}; one of them is missing or unknown: {different[0]}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Recipe(**values)


class ImageError(ValueError):
    """Why a file gives no pixels, in one line without its name."""


def pixels_of(source: str | bytes, recipe: Recipe) -> Pixels:
    """Return the pixels of an image file, given as its path or as its bytes."""
    with opened(source) as image:
        return as_pixels(framed(upright(image, recipe), recipe))


def sha256_of_pixels(pixels: Pixels) -> str:
    """Return the SHA-256 of the bytes in the order C x H x W."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def as_pixels(image: Image.Image) -> Pixels:
    """Return an image of mode L or RGB as C x H x W."""
    return np.ascontiguousarray(np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1))


_ONE_AT_A_TIME = threading.Lock()
"""`warnings.catch_warnings` is not safe where several threads decode."""


@contextmanager
def opened(source: str | bytes) -> Iterator[Image.Image]:
    """Yield the image with its header read. Whatever goes wrong until the end is an ImageError."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _require_not_too_large(image.width, image.height)
                yield image
        except ImageError:
            raise
        # Pillow's plugins raise nearly any exception for damaged bytes: OSError, SyntaxError, ...
        except Exception as error:
            raise ImageError(_reason(source, error)) from error


def _require_not_too_large(width: int, height: int) -> None:
    if width * height > LARGEST:
        raise ImageError(f"{width}x{height} are more than {LARGEST:,} pixels")


def _reason(source: str | bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        return "it is empty" if empty else f"it is not an image in one of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# ---- colour --------------------------------------------------------------------------------------
GRAY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
"""Pillow's names for the kinds of pixels that are read."""
_WIDE_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")


def has_16_bits(image: Image.Image) -> bool:
    """Tell 16 bits per channel from 8.

    Pillow has no mode for 16-bit colour: it drops the low byte and reports an 8-bit mode. The raw
    mode of the tiles shows the difference.
    """
    return image.mode in _WIDE_GRAY or any(raw.startswith(("RGB", "LA", "CMYK")) and ";16" in raw for raw in _raw_modes(image))


def _raw_modes(image: Image.Image) -> list[str]:
    arguments = (tile[3] for tile in getattr(image, "tile", []))
    found = (args[0] if isinstance(args, tuple) and args else args for args in arguments)
    return [raw for raw in found if isinstance(raw, str)]


def require_readable(image: Image.Image, sixteen_bits: str) -> None:
    """Raise ImageError unless the kind of its pixels is one that the recipe reads."""
    if _scaled_by_pillow(image):
        raise ImageError("its pixels have a maximum above 255, which Pillow would scale; convert it")
    wide = has_16_bits(image)
    if wide and sixteen_bits == HIGH_BYTE:
        return
    if wide or image.mode not in (*GRAY_MODES, *COLOUR_MODES):
        # Which 8 of the 16 bits matter depends on the image, so only its owner can choose.
        kind = f"{image.mode} of 16 bits" if wide and ";16" not in image.mode else image.mode
        choice = ", or set data.sixteen_bits: high_byte" if wide else ""
        raise ImageError(f"its pixels are {kind}, not 8-bit gray, RGB, palette, CMYK or YCbCr; convert it{choice}")


def _scaled_by_pillow(image: Image.Image) -> bool:
    """Whether it is a PPM file of more than 8 bits: Pillow rounds these to 8 by a division."""
    arguments = (tile[3] for tile in getattr(image, "tile", []))
    return image.format == "PPM" and any(isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255 for args in arguments)


def is_gray(image: Image.Image) -> bool:
    """Whether a readable image has no colour."""
    # Pillow reports gray with transparency of 16 bits as RGBA.
    return image.mode in (*GRAY_MODES, *_WIDE_GRAY) or any(raw.startswith("LA") for raw in _raw_modes(image))


def upright(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Decode the whole image: mode L or RGB, turned upright."""
    turn = TURNS.get(orientation_of(image))
    require_readable(image, recipe.sixteen_bits)
    image.load()
    plain = _high_bytes(image) if image.mode in _WIDE_GRAY else image
    converted = plain if plain.mode == recipe.colour else plain.convert(recipe.colour)
    return converted if turn is None else converted.transpose(turn)


def _high_bytes(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


# ---- orientation ---------------------------------------------------------------------------------
_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation. 1 is already upright, and other numbers have
no meaning. 5 to 8 swap width and height."""


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image whose pixels have not been decoded."""
    # Read only EXIF data in front of the pixels: Pillow would decode a whole PNG to look for more.
    # Pillow turns a TIFF by itself.
    orientation = image.getexif().get(_ORIENTATION) if "exif" in image.info else None
    return orientation if isinstance(orientation, int) else 1


# ---- framing -------------------------------------------------------------------------------------
def framed(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Bring an upright image to the recipe's size."""
    size = recipe.width, recipe.height
    if recipe.framing == WHOLE:
        if image.size != size:
            raise ImageError(f"it is {image.width}x{image.height}, expected {recipe.width}x{recipe.height}")
        return image
    if recipe.resize is None:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return scaled(image, size, (left, top, left + side, top + side))
    whole = _with_shorter_side(image, recipe.resize)
    left, top = (round((length - recipe.width) / 2) for length in whole.size)
    return whole.crop((left, top, left + recipe.width, top + recipe.height))


def _with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (side if length == shorter else side * length // shorter for length in image.size)
    _require_not_too_large(width, height)
    return scaled(image, (width, height), (0, 0, *image.size))


def scaled(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Scale a part of an image.

    The horizontal pass comes first, in a call of its own. In one call Pillow 13 takes the cheaper
    pass first and Pillow 12 the horizontal one, so that upright images got other pixels.
    """
    width, height = size
    left, top, right, bottom = box
    reach = max((bottom - top) / height, 1.0) + 1  # rows beyond the box that the vertical pass reads, and one to spare
    first, last = max(math.floor(top - reach), 0), min(math.ceil(bottom + reach), image.height)
    rows = image if (first, last) == (0, image.height) else image.crop((0, first, image.width, last))
    wide = rows.resize((width, rows.height), Image.Resampling.BILINEAR, box=(left, 0, right, rows.height))
    return wide.resize(size, Image.Resampling.BILINEAR, box=(0, top - first, width, bottom - first))


# ---- the copy in a bundle ------------------------------------------------------------------------
def main(arguments: Sequence[str]) -> int:
    """Print the SHA-256 of the pixels of image files; 5 if one of them cannot be used."""
    parser = argparse.ArgumentParser(description="Prints the SHA-256 of the pixels (uint8, C x H x W) that the model of this bundle takes.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--npy", type=Path, metavar="DIR", help="write the pixels here too, as NAME.npy")
    given = parser.parse_args(arguments)
    recipe = recipe_of(json.loads((Path(__file__).parent / "manifest.json").read_text(encoding="utf-8"))["recipe"])
    code = 0
    for path in given.images:
        try:
            pixels = pixels_of(path, recipe)
        except ImageError as error:
            print(f"{path} cannot be used: {error}", file=sys.stderr)
            code = 5
            continue
        print(f"{sha256_of_pixels(pixels)}  {path}")
        if given.npy is not None:
            np.save(given.npy / f"{Path(path).name}.npy", pixels)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
