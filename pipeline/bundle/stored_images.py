"""The image files in a bundle, and the hashes of the pixels that they gave when it was made.

They are test images where the data set consists of files, and made-up ones of many kinds elsewhere.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deploy.verify.pixels import StoredImages
from export.bundle import IMAGE_FOLDER, IMAGES, Bundle, json_bytes
from export.errors import DamagedError
from export.files import write_file
from export.preprocess import WHOLE, ImageError, Recipe, pixels_of, sha256_of_pixels

_MOST_FILES, _MOST_BYTES = 8, 4 * 2**20
_ORIENTATION = 0x0112
_OTHER_SIGNS = re.compile(r"[^a-z0-9.]")


def write_stored_images(folder: Path, recipe: Recipe, test_files: Sequence[str]) -> None:
    """Write a few image files, and the hashes of their pixels."""
    files = _some_of(test_files) or made_up_images(recipe)
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for name, content in files.items():
        write_file(folder / name, content)
    write_file(folder / IMAGES, json_bytes({name: _hash(name, content, recipe) for name, content in files.items()}))


def stored_images(bundle: Bundle) -> StoredImages:
    """Return the files that the bundle stores, with their hashes."""
    try:
        hashes = json.loads(bundle.read(IMAGES))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{bundle.folder / IMAGES} is not JSON ({error}); export the bundle again") from error
    names = sorted(name for name in bundle.manifest.files if name.startswith(f"{IMAGE_FOLDER}/"))
    if not isinstance(hashes, dict) or sorted(hashes) != names or not names or not all(isinstance(each, str) for each in hashes.values()):
        raise DamagedError(f"{bundle.folder / IMAGES} does not give one hash for each file in {IMAGE_FOLDER}; export the bundle again")
    files = {name: bundle.read(name) for name in names}
    return StoredImages(files, hashes, bundle.manifest.recipe, bundle.manifest.versions.get("pillow", "unknown"))


def _hash(name: str, content: bytes, recipe: Recipe) -> str:
    try:
        return sha256_of_pixels(pixels_of(content, recipe))
    except ImageError as error:
        raise DamagedError(f"{name}, a copy of a test image, cannot be used: {error}; fix or remove that image") from error


def _some_of(paths: Sequence[str]) -> dict[str, bytes]:
    """Return up to eight files, evenly spread, as far as all of them stay small."""
    found: dict[str, bytes] = {}
    left = _MOST_BYTES
    for place in range(min(_MOST_FILES, len(paths))):
        path = Path(paths[place * len(paths) // min(_MOST_FILES, len(paths))])
        if path.stat().st_size <= left:
            found[f"{IMAGE_FOLDER}/{place}{_OTHER_SIGNS.sub('', path.suffix.lower())}"] = path.read_bytes()
            left -= path.stat().st_size
    return found


def made_up_images(recipe: Recipe) -> Mapping[str, bytes]:
    """Return pictures of several kinds, of odd sizes where the recipe scales."""
    exact = recipe.framing == WHOLE
    width, height = (recipe.width, recipe.height) if exact else (recipe.width * 3 // 2 + 1, recipe.height * 2 + 1)
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    colours = _picture(width, height, 0)
    across = _picture(height, width, 1)  # turned upright, it has the size of the others
    pictures = {
        "turned.jpg": _encoded(across, "JPEG", exif=turned.tobytes(), quality=90),
        "cmyk.jpg": _encoded(colours.convert("CMYK"), "JPEG", quality=90),
        "progressive.jpg": _encoded(colours, "JPEG", quality=70, progressive=True),
        "palette.png": _encoded(colours.quantize(32), "PNG"),
        "transparent.png": _encoded(_with_alpha(colours), "PNG"),
        "gray.png": _encoded(colours.convert("L"), "PNG"),
    }
    return {f"{IMAGE_FOLDER}/{name}": content for name, content in pictures.items()}


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """Return waves of all directions in three colours, plus a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(a * x / width + b * y / height + c) for a, b, c in random.uniform(-20, 20, (3, 3))]
    values = 128 + 100 * np.stack(waves, axis=-1) + random.integers(-20, 21, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = np.linspace(0, 255, image.width * image.height).astype(np.uint8).reshape(image.height, image.width)
    found = image.copy()
    found.putalpha(Image.fromarray(alpha))
    return found


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
