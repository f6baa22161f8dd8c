"""Two hundred image files: photographs in many kinds of file and colour, of odd sizes."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = [(1, 1), (1, 7), (3, 2), (17, 31), (64, 48), (400, 3), (2, 300), (33, 33), (120, 81), (55, 56)]
"""Width and height."""
_ORIENTATION = 0x0112
Encoder = Callable[[Image.Image], bytes]


def _saved(kind: str, mode: str = "RGB", **options: Any) -> Encoder:
    def encode(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **options)
        return file.getvalue()

    return encode


def _turned(orientation: int, kind: str, **options: Any) -> Encoder:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return _saved(kind, "RGB", exif=exif.tobytes(), **options)


def _palette(image: Image.Image, **options: Any) -> bytes:
    return _saved("PNG", "P", **options)(image.quantize(16))


def _with_alpha(mode: str) -> Encoder:
    def encode(image: Image.Image) -> bytes:
        other = image.convert(mode)
        other.putalpha(image.convert("L").transpose(Image.Transpose.ROTATE_180))
        return _saved("PNG", mode)(other)

    return encode


def _wide(color_type: int) -> Encoder:
    """A PNG file with 16 bits per channel, which Pillow cannot write in colour."""

    def encode(image: Image.Image) -> bytes:
        values = np.asarray(image.convert("L" if color_type == 0 else "RGB")).astype(np.uint16)
        rows = (values * 256 + values[::-1] % 251).reshape(image.height, -1).astype(">u2")
        header = struct.pack(">IIBBBBB", *image.size, 16, color_type, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
        )

    return encode


def _animated(image: Image.Image) -> bytes:
    return _saved("GIF", save_all=True, append_images=[image.rotate(180), image.rotate(90)])(image)


KINDS: Mapping[str, Encoder] = {
    **{f"turned-{number}.jpg": _turned(number, "JPEG") for number in range(1, 9)},
    **{f"turned-{number}.png": _turned(number, "PNG") for number in (3, 6)},
    "turned-7.webp": _turned(7, "WEBP", lossless=True),
    "turned-8.tiff": _turned(8, "TIFF"),
    "nonsense-99.jpg": _turned(99, "JPEG"),
    "progressive.jpg": _saved("JPEG", progressive=True, quality=60),
    "gray.jpg": _saved("JPEG", "L"),
    "cmyk.jpg": _saved("JPEG", "CMYK"),
    "cmyk.tif": _saved("TIFF", "CMYK"),
    "palette.png": _palette,
    "palette-clear.png": lambda image: _palette(image, transparency=b"\x00\x80\xff"),
    "one-bit.png": _saved("PNG", "1"),
    "gray-alpha.png": _with_alpha("LA"),
    "colour-alpha.png": _with_alpha("RGBA"),
    "wide-gray.png": _wide(0),
    "wide-colour.png": _wide(2),
    "lossless.webp": _saved("WEBP", lossless=True),
    "lossy.webp": _saved("WEBP", quality=50),
    "packed.tiff": _saved("TIFF", compression="tiff_lzw"),
    "plain.bmp": _saved("BMP"),
    "plain.ppm": _saved("PPM"),
    "gray.pgm": _saved("PPM", "L"),
    "still.gif": _saved("GIF"),
    "animated.gif": _animated,
    "smooth.jpg": _saved("JPEG", quality=95, subsampling=0),
}


def dirty_images(number: int = 200) -> dict[str, bytes]:
    """Return that many files by name: each kind in turn, each with several of the sizes."""
    photographs = [Image.open(path).convert("RGB") for path in _photographs()]
    random = np.random.default_rng(0)
    kinds = list(KINDS.items())
    found = {}
    for place in range(number):
        (name, encode), (width, height) = kinds[place % len(kinds)], SIZES[(place // len(kinds) + place) % len(SIZES)]
        photograph = photographs[place % len(photographs)]
        left, top = (int(random.integers(0, length - size + 1)) for length, size in zip(photograph.size, (width, height), strict=True))
        found[f"{place:03}-{name}"] = encode(photograph.crop((left, top, left + width, top + height)))
    return found


def _photographs() -> list[Path]:
    """Return the two that come with scikit-learn."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "datasets" / "images").glob("*.jpg"))
