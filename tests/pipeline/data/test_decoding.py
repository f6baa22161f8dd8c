"""Every kind of image file: read exactly, converted by a stated rule, or refused with its path.

The part that is taken is torchvision's.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from export.preprocess import CENTRE_SQUARE, HIGH_BYTE, SHORTER_SIDE, WHOLE, framed, recipe_for
from pipeline.data.decoding import Area, Decoder, DecodeRequest, Header, UnreadableImage, printable, random_box, read_headers


def whole(channels: int, height: int, width: int) -> Decoder:
    return Decoder(recipe_for((channels, height, width), framing=WHOLE))


def square(size: int, area: Area | None = None) -> Decoder:
    return Decoder(recipe_for((3, size, size), framing=CENTRE_SQUARE), area)


COLOUR = whole(3, 5, 7)
GRAY = whole(1, 5, 7)


def header(path: Path) -> Header:
    (found,) = read_headers([str(path)])
    assert isinstance(found, Header)
    return found


def pixels(decoder: Decoder, path: Path) -> np.ndarray:
    decoded = decoder([DecodeRequest(str(path))])
    assert isinstance(decoded, torch.Tensor)
    return decoded[0].permute(1, 2, 0).numpy()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    parts = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    chunks = ((b"IHDR", parts), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, noise: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path, lossless=True)
    assert (header(path).width, header(path).height) == (7, 5)
    assert np.array_equal(pixels(COLOUR, path), noise)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    with Image.open(path) as image:
        assert np.array_equal(pixels(COLOUR, path), np.asarray(image))


def test_gray_and_colour(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "gray.png"
    Image.fromarray(noise[..., 0]).save(path)
    assert header(path).gray
    assert np.array_equal(pixels(GRAY, path), noise[..., :1])
    assert np.array_equal(pixels(COLOUR, path), noise[..., [0, 0, 0]])


def test_colour_to_gray_is_luma(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    weighted = noise.astype(np.int64) @ np.array([19595, 38470, 7471]) + 0x8000 >> 16
    assert np.array_equal(pixels(GRAY, path)[..., 0], weighted)


def test_transparency_is_left_out_and_said(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.dstack([noise, noise[..., 0]])).save(path)
    assert header(path).conversion == "with transparency read without it"
    assert np.array_equal(pixels(COLOUR, path), noise)


def test_a_palette_becomes_its_colours_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("P", (7, 5), 1)
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.save(path, transparency=b"\x00\x01")
    assert header(path).conversion == "with a palette read as colour"
    assert (pixels(COLOUR, path) == [40, 50, 60]).all()


def test_cmyk_is_converted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (7, 5), (0, 255, 255, 0)).save(path, quality=100)
    assert header(path).conversion == "in CMYK converted without a colour profile"
    assert pixels(COLOUR, path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, noise: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path, exif=exif)
    upright = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.swapaxes(0, 1),
        6: noise.swapaxes(0, 1)[:, ::-1],
        7: noise.swapaxes(0, 1)[::-1, ::-1],
        8: noise.swapaxes(0, 1)[::-1],
    }[orientation]
    height, width = upright.shape[:2]
    decoder = whole(3, height, width)
    assert (header(path).width, header(path).height, header(path).turned) == (width, height, orientation != 1)
    assert np.array_equal(pixels(decoder, path), upright)


@pytest.mark.parametrize("suffix", ["tiff", "jpg", "webp"])
def test_exif_orientation_is_applied_once_in_every_format(tmp_path: Path, noise: np.ndarray, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path, plain = tmp_path / f"a.{suffix}", tmp_path / f"plain.{suffix}"
    Image.fromarray(noise).save(path, exif=exif, lossless=True)
    Image.fromarray(noise).save(plain, lossless=True)
    turned = whole(3, 7, 5)
    assert (header(path).width, header(path).height) == (5, 7)
    assert np.array_equal(pixels(turned, path), pixels(COLOUR, plain).swapaxes(0, 1)[:, ::-1])


def test_the_centre_square_is_scaled(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    same = square(5)
    assert np.array_equal(pixels(same, path), noise[:, 1:6])
    tall = tmp_path / "tall.png"
    Image.fromarray(np.full((5000, 1, 3), 9, np.uint8)).save(tall)
    assert (pixels(same, tall) == 9).all()


def whole_png() -> bytes:
    rows = np.random.default_rng(0).integers(0, 256, (40, 1 + 3 * 40), np.uint8)
    rows[:, 0] = 0
    return png(40, 40, 8, 2, rows.tobytes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"no image at all", "it is not an image in one of BMP, GIF, JPEG"),
        (b"GIF89a" + bytes(50), "it is not an image in one of|cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not an image in one of"),
        (whole_png()[:20], "it is not an image in one of|[Tt]runcated"),
        (png(20000, 20000, 8, 0, b""), "could be decompression bomb DOS attack"),
        (png(10000, 10000, 8, 0, b""), "10000x10000 are more than 89,478,485 pixels"),
        (png(1, 1, 16, 0, bytes(3)), "its pixels are I;16, not 8-bit gray"),
        (png(1, 1, 16, 2, bytes(7)), "its pixels are RGB of 16 bits, not 8-bit gray"),
        (png(1, 1, 16, 4, bytes(5)), "its pixels are RGBA of 16 bits, not 8-bit gray"),
        (png(1, 1, 16, 6, bytes(9)), "its pixels are RGBA of 16 bits, not 8-bit gray"),
        (b"P6 1 1 65535\n" + bytes(6), "a maximum above 255"),
        (b"P5 1 1 1023\n" + bytes(2), "a maximum above 255"),
    ],
)
def test_a_header_that_cannot_be_used_is_one_line_with_the_path(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    (found,) = read_headers([str(path)])
    assert isinstance(found, UnreadableImage)
    line = rf"{re.escape(str(path))} cannot be used: .*({reason}).*; fix or remove it"
    assert re.fullmatch(line, found.message)


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_of_16_bits_the_high_byte_is_read_if_the_owner_says_so(tmp_path: Path, color_type: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    values = np.random.default_rng(color_type).integers(0, 2**16, (5, 7 * channels), np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png(7, 5, 16, color_type, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    (found,) = read_headers([str(path)], HIGH_BYTE)
    assert isinstance(found, Header)
    assert (found.gray, found.conversion) == (color_type in (0, 4), "of 16 bits read without the lower 8")
    colour = 1 if found.gray else 3
    high = (values >> 8).astype(np.uint8).reshape(5, 7, channels)[..., :colour]
    assert np.array_equal(pixels(Decoder(recipe_for((colour, 5, 7), framing=WHOLE, sixteen_bits=HIGH_BYTE)), path), high)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "ppm"])
def test_truncated_pixels_are_one_line_with_the_path(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(big).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = whole(3, 64, 64)([DecodeRequest(str(path))])
    assert isinstance(found, UnreadableImage)
    assert found.message.startswith(f"{path} cannot be used: ")
    assert "\n" not in found.message


def test_a_missing_file_and_one_that_changed_are_said(tmp_path: Path, noise: np.ndarray) -> None:
    (missing,) = read_headers([str(tmp_path / "none.png")])
    assert missing == UnreadableImage(f"{tmp_path}/none.png cannot be used: No such file or directory; fix or remove it")
    path = tmp_path / "a.png"
    Image.fromarray(noise[:4]).save(path)
    changed = COLOUR([DecodeRequest(str(path))])
    assert isinstance(changed, UnreadableImage)
    assert "it is 7x4, expected 7x5" in changed.message


def test_names_never_break_a_line() -> None:
    assert printable("a b.png") == "a b.png"
    assert printable("a\nb") == r"'a\nb'"
    assert printable("\udcff") == r"'\udcff'"


SIZES = [(40, 30), (31, 47), (33, 33), (64, 25), (24, 24)]
"""Width and height."""
USUAL = (0.08, 1.0)


@contextmanager
def horizontal_first() -> Iterator[None]:
    """Let torchvision scale in the order of our recipe: in one call Pillow 13 chooses the order.

    That the recipe's filter is right by itself is tested in test_preprocess.py.
    """
    in_one_call = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        return in_one_call(in_one_call(image, (size[0], image.height), resample), size, resample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        yield


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "cut"), [(32, 28), (25, 24), (24, 24), (19, 8)])
def test_the_tested_part_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], resize: int, cut: int) -> None:
    image = picture(*size)
    recipe = recipe_for((3, cut, cut), framing=SHORTER_SIDE, resize=resize)
    ours = framed(image, recipe)
    with horizontal_first():
        theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(cut)])(image)
    assert ours.size == (cut, cut)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert np.array_equal(np.asarray(Decoder(recipe, USUAL).framed(image, None)), np.asarray(theirs))


@pytest.mark.parametrize("size", SIZES)
def test_a_random_part_is_cut_out_and_scaled_as_torchvision_does(size: tuple[int, int]) -> None:
    image = picture(*size)
    for draw in range(20):
        left, top, right, bottom = random_box(*size, USUAL, Random(draw))
        with horizontal_first():
            theirs = F.resized_crop(image, top, left, bottom - top, right - left, [16, 16])
        assert np.array_equal(np.asarray(square(16, USUAL).framed(image, draw)), np.asarray(theirs))


def test_without_random_parts_a_draw_changes_nothing() -> None:
    image = picture(40, 30)
    assert np.array_equal(np.asarray(square(16).framed(image, 5)), np.asarray(square(16).framed(image, None)))


@pytest.mark.parametrize("area", [USUAL, (0.25, 0.5)])
def test_random_parts_lie_inside_with_the_areas_and_ratios_of_the_rule(area: tuple[float, float]) -> None:
    width, height = 500, 400
    boxes = np.array([random_box(width, height, area, Random(draw)) for draw in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert right.max() <= width
    assert bottom.max() <= height
    shares = (right - left) * (bottom - top) / (width * height)
    ratios = (right - left) / (bottom - top)
    assert area[0] - 0.005 < shares.min() < area[0] + 0.02
    assert area[1] - 0.05 < shares.max() < area[1] + 0.005
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios)).max() < math.log(4 / 3) + 0.02


def test_random_parts_are_distributed_as_torchvisions() -> None:
    """Return deciles of share, ratio and place of 4,000 parts each.

    Two samples of this size differ by up to about 0.03 in them.
    """
    width, height = 500, 400
    torch.manual_seed(0)
    theirs = np.array([transforms.RandomResizedCrop.get_params(picture(width, height), list(USUAL), [3 / 4, 4 / 3]) for _ in range(4000)])
    top, left, high, wide = theirs.T
    ours = np.array([random_box(width, height, USUAL, Random(draw)) for draw in range(4000)])
    ours_wide, ours_high = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    pairs = [
        (wide * high / (width * height), ours_wide * ours_high / (width * height)),
        (np.log(wide / high), np.log(ours_wide / ours_high)),
        (left / width, ours[:, 0] / width),
        (top / height, ours[:, 1] / height),
    ]
    deciles = np.linspace(0.1, 0.9, 9)
    for a, b in pairs:
        assert np.abs(np.quantile(a, deciles) - np.quantile(b, deciles)).max() < 0.04


@pytest.mark.parametrize("size", [(1000, 30), (30, 1000), (600, 30)])
def test_where_no_part_fits_it_is_torchvisions_centre(size: tuple[int, int]) -> None:
    top, left, high, wide = transforms.RandomResizedCrop.get_params(Image.new("L", size), [1.0, 1.0], [3 / 4, 4 / 3])
    assert random_box(*size, (1.0, 1.0), Random(0)) == (left, top, left + wide, top + high)
