"""One file, the same bytes: in training, in predict, in the bundle's own code and its hashes.

And the filter is the one that docs/images.md describes.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dirty_images import dirty_images
from PIL import Image

from deploy.predict.predictor import LogitSource, Prediction, Predictor
from export import preprocess
from export.bundle import Facts, TensorEntry, json_bytes
from export.preprocess import CENTRE_SQUARE, HIGH_BYTE, LARGEST, SHORTER_SIDE, ImageError, Pixels, Recipe, pixels_of, recipe_for, sha256_of_pixels
from pipeline.bundle import stored_images
from pipeline.config.sections import Data
from pipeline.data import open_data

BARE = """
import runpy, sys
sys.path[:] = [each for each in sys.path if "python" in each] + [sys.argv[1]]
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "pydantic", "onnx", "export"} & set(sys.modules)
"""
SETTINGS = [
    {"image_size": 16, "color": "rgb"},
    {"image_size": 15, "color": "gray"},
    {"image_size": 21, "resize": 24, "color": "rgb"},
]


def facts_of(recipe: Recipe) -> Facts:
    return Facts(
        network="small",
        method="czmig",
        input=TensorEntry(name="image", dtype="uint8", shape=[None, *recipe.shape]),
        output=TensorEntry(name="logits", dtype="float32", shape=[None, 2]),
        classes=["a", "b"],
        recipe=recipe,
        versions={},
        device="cpu",
        training_precision="float32",
        metrics={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        for name in ("one", "other"):
            (root / split / name).mkdir(parents=True)
    for place, (name, content) in enumerate(dirty_images().items()):
        (root / "train" / ("one", "other")[place % 2] / name).write_bytes(content)
    for name in ("one", "other"):
        Image.new("RGB", (20, 20)).save(root / "test" / name / "black.png")
    return root


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which nothing but Pillow and NumPy can be imported."""
    packages = tmp_path_factory.mktemp("packages")
    for name in ("PIL", "numpy"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        place = Path(spec.origin).parent
        (packages / name).symlink_to(place)
        for libraries in (place.parent / f"{each}.libs" for each in ("pillow", "numpy")):
            if libraries.is_dir() and not (packages / libraries.name).exists():
                (packages / libraries.name).symlink_to(libraries)
    return packages


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_hundred_dirty_files_give_the_same_bytes_everywhere(
    folder: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    data = open_data(Data(name="imagefolder", root=str(folder), sixteen_bits="high_byte", batch_size=8, workers=0, **settings), torch.device("cpu"))
    trained = np.concatenate([images.numpy() for images, _ in data.train.batches(64)])
    paths = [str(path) for path in sorted((folder / "train").glob("*/*"))]
    assert len(paths) == len(trained) == 200
    assert trained.shape[1:] == data.recipe.shape
    hashes = [sha256_of_pixels(pixels) for pixels in trained]
    assert len(set(hashes)) > 150, "the files are not all alike"

    assert predicted(data.recipe, paths) == hashes

    monkeypatch.setattr(stored_images, "_MOST_FILES", 200)
    stored_images.write_stored_images(tmp_path, data.recipe, paths)
    stored = json.loads((tmp_path / "training" / "images.json").read_bytes())
    assert list(stored.values()) == hashes

    (tmp_path / "manifest.json").write_bytes(json_bytes(facts_of(data.recipe).model_dump()))
    (tmp_path / "preprocess.py").write_bytes(Path(preprocess.__file__).read_bytes())
    arguments = ["-I", "-S", "-c", BARE, str(bare), str(tmp_path / "preprocess.py"), *paths]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{digest}  {path}" for digest, path in zip(hashes, paths, strict=True)]


def predicted(recipe: Recipe, paths: list[str]) -> list[str]:
    """Return the hashes that predict tells, and require that the model gets these very pixels."""
    fed: list[Pixels] = []

    def logits(pixels: Pixels) -> np.ndarray:
        fed.extend(pixels)
        return np.zeros((len(pixels), 2), np.float32)

    found = list(Predictor(facts_of(recipe), LogitSource(logits, {}, 32)).predict_each([Path(path).read_bytes() for path in paths]))
    told = [each.sha256_of_pixels for each in found if isinstance(each, Prediction)]
    assert told == list(map(sha256_of_pixels, fed))
    return told


def test_files_of_16_bits_are_refused_alike_without_the_owners_choice(folder: Path) -> None:
    (path,) = list((folder / "train").glob("*/*-wide-colour.png"))[:1]
    with pytest.raises(ImageError, match=r"its pixels are RGB of 16 bits, .*; convert it, or set data.sixteen_bits: high_byte"):
        pixels_of(str(path), recipe_for((3, 8, 8)))


def test_the_copy_in_a_bundle_names_a_file_that_it_cannot_use_and_writes_arrays(bundle: Path, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("L", (9, 9), 77).save(tmp_path / "good.png")
    files = [str(tmp_path / name) for name in ("bad.png", "good.png")]
    arguments = ["-I", "-S", "-c", BARE, str(bare), str(bundle / "preprocess.py"), "--npy", str(tmp_path), *files]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert done.stderr == f"{files[0]} cannot be used: it is not an image in one of {', '.join(preprocess.FORMATS)}\n"
    assert done.stdout == f"{sha256_of_pixels(np.full((1, 8, 8), 77, np.uint8))}  {files[1]}\n"
    assert np.array_equal(np.load(tmp_path / "good.png.npy"), np.full((1, 8, 8), 77))


def test_what_has_too_many_pixels_is_refused_before_they_are_made(tmp_path: Path) -> None:
    Image.new("L", (1, 40_000)).save(tmp_path / "thin.png")
    assert LARGEST < 256 * 256 * 40_000
    with pytest.raises(ImageError, match="256x10240000 are more than 89,478,485 pixels"):
        pixels_of(str(tmp_path / "thin.png"), recipe_for((3, 224, 224), framing=SHORTER_SIDE, resize=256))
    assert pixels_of(str(tmp_path / "thin.png"), recipe_for((3, 224, 224))).shape == (3, 224, 224)


def weights(length: int, start: float, end: float, size: int) -> np.ndarray:
    """Return the integer weights of docs/images.md, as a matrix of new by old pixels."""
    scale = (end - start) / size
    support = max(scale, 1.0)
    found = np.zeros((size, length), np.int64)
    for place in range(size):
        centre = start + (place + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        triangle = [max(0.0, 1.0 - abs((x + 0.5 - centre) * (1.0 / support))) for x in range(first, last)]
        found[place, first:last] = [math.floor(0.5 + each / sum(triangle) * 2**22) for each in triangle]
    return found


def filtered(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Scale H x W pixels in integers: the horizontal pass, rounded to bytes, then the vertical."""
    left, top, right, bottom = box
    for across, (start, end) in ((True, (left, right)), (False, (top, bottom))):
        values = pixels if across else pixels.T
        length = values.shape[1]
        if (start, end, size) != (0, length, length):
            values = np.clip((2**21 + values.astype(np.int64) @ weights(length, start, end, size).T) >> 22, 0, 255)
        pixels = values if across else values.T
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (8, 5), (31, 64), (64, 47), (3, 200), (120, 121), (16, 16), (299, 300)])
@pytest.mark.parametrize("size", [1, 7, 16, 50])
def test_the_filter_is_the_one_that_is_documented(shape: tuple[int, int], size: int) -> None:
    height, width = shape
    pixels = np.random.default_rng(height).integers(0, 256, shape, np.uint8)
    side = min(shape)
    left, top = (width - side) / 2, (height - side) / 2
    ours = preprocess.framed(Image.fromarray(pixels), recipe_for((1, size, size), framing=CENTRE_SQUARE))
    assert np.array_equal(np.asarray(ours), filtered(pixels, (left, top, left + side, top + side), size))


def test_rounding_the_square_gives_other_pixels() -> None:
    """What a literal reading of "the centre square, scaled" does."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8))
    cropped = image.crop((10, 0, 50, 40)).resize((32, 32), Image.Resampling.BILINEAR)
    assert not np.array_equal(np.asarray(preprocess.framed(image, recipe_for((3, 32, 32)))), np.asarray(cropped))


def test_a_recipe_is_what_its_json_says() -> None:
    recipe = replace(recipe_for((3, 21, 21), framing=SHORTER_SIDE, resize=24, sixteen_bits=HIGH_BYTE))
    assert preprocess.recipe_of(json.loads(recipe.text)) == recipe


@pytest.mark.parametrize("change", [{"height": True}, {"height": "8"}, {"version": True}, {"formats": ["PNG"]}, {"resize": 4.0}, {"colour": "CMYK"}])
def test_a_recipe_with_another_value_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="recipe"):
        preprocess.recipe_of({**json.loads(recipe_for((3, 8, 8)).text), **change})
