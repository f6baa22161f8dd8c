"""The link from image files to pixels: what a bundle stores, and what a change of decoding does."""

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import relist
from commands import pipeline
from PIL import Image

from export import preprocess
from export.errors import DamagedError
from export.preprocess import SHORTER_SIDE, WHOLE, Recipe, pixels_of, recipe_for, sha256_of_pixels
from pipeline.bundle import stored_images
from pipeline.bundle.stored_images import made_up_images, write_stored_images

LINK = "image file -> pixels"
Capture = pytest.CaptureFixture[str]


def test_the_link_passes_alone(bundle: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "verify", bundle, "--only", LINK)
    assert (done.code, done.out.splitlines()[0]) == (0, f"{LINK}: passed, the same bits")
    assert "the outputs are the same, on 6 samples: image files stored in the bundle" in done.out


def test_another_scaling_is_found(bundle: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a Pillow that rounds its weights differently: a value in each image changes by 1."""

    def off_by_one(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1).copy()
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(preprocess, "as_pixels", off_by_one)
    done = pipeline(capfd, "verify", bundle, "--report", bundle.parent / "report", "--junit", bundle.parent / "junit.xml")
    assert done.code == 3
    assert f"{LINK} failed: required bitwise, but 6 of 6 image files differ: training/images/cmyk.jpg gives other pixels" in done.error
    assert "Pillow is " in done.error
    links = json.loads((bundle.parent / "report" / "verification.json").read_bytes())["links"]
    assert [(link["from"], link["status"]) for link in links[:2]] == [("image file", "failed"), ("training graph", "passed")]
    assert LINK.replace(">", "&gt;") in (bundle.parent / "junit.xml").read_text()
    assert "image file" in (bundle.parent / "report" / "report.html").read_text()


def test_a_file_that_no_longer_decodes_is_named(bundle: Path, capfd: Capture) -> None:
    path = bundle / "training" / "images" / "gray.png"
    path.write_bytes(path.read_bytes()[:60])
    relist(bundle)
    done = pipeline(capfd, "verify", bundle, "--only", "pixels")
    assert done.code == 3
    assert "1 of 6 image files differ: training/images/gray.png cannot be used: " in done.error


@pytest.mark.parametrize("content", ["[]", "{", '{"training/images/gray.png": "ab"}', "{}"])
def test_hashes_that_are_not_those_of_the_files_are_damage(bundle: Path, capfd: Capture, content: str) -> None:
    (bundle / "training" / "images.json").write_text(content)
    relist(bundle)
    done = pipeline(capfd, "verify", bundle, "--only", "pixels")
    assert done.code == 5
    assert "images.json" in done.error


def test_a_recipe_that_fits_another_model_is_damage(bundle: Path, capfd: Capture) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["recipe"] |= {"height": 9, "width": 9}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = pipeline(capfd, "verify", bundle)
    assert done.code == 5
    assert "says different things about its recipe" in done.error


def test_files_of_the_test_split_are_stored_as_they_are(tmp_path: Path) -> None:
    recipe = recipe_for((3, 6, 6))
    paths = [tmp_path / f"{number}.PNG" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((9, 8 + number, 3), number, np.uint8)).save(path)
    write_stored_images(tmp_path / "bundle", recipe, list(map(str, paths)))
    hashes = json.loads((tmp_path / "bundle" / "training" / "images.json").read_bytes())
    assert sorted(hashes) == [f"training/images/{place}.png" for place in range(8)]
    chosen = [paths[place * 20 // 8] for place in range(8)]
    for (name, digest), path in zip(hashes.items(), chosen, strict=True):
        assert (tmp_path / "bundle" / name).read_bytes() == path.read_bytes()
        assert digest == sha256_of_pixels(pixels_of(str(path), recipe))


def test_files_that_are_too_large_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "_MOST_BYTES", 10)
    path = tmp_path / "large.png"
    Image.new("RGB", (9, 9)).save(path)
    write_stored_images(tmp_path / "bundle", recipe_for((3, 6, 6)), [str(path)])
    assert "training/images/turned.jpg" in json.loads((tmp_path / "bundle" / "training" / "images.json").read_bytes())


def test_a_test_image_that_was_damaged_meanwhile_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DamagedError, match=r"images/0.png, a copy of a test image, cannot be used: "):
        write_stored_images(tmp_path / "bundle", recipe_for((3, 6, 6)), [str(tmp_path / "a.png")])


@pytest.mark.parametrize(
    "recipe",
    [recipe_for((1, 8, 8)), recipe_for((3, 40, 24), framing=WHOLE), recipe_for((3, 22, 22), framing=SHORTER_SIDE, resize=25), recipe_for((3, 1, 1))],
)
def test_made_up_images_fit_every_recipe_and_are_the_same_each_time(recipe: Recipe) -> None:
    pictures = made_up_images(recipe)
    assert pictures == made_up_images(recipe)
    assert {pixels_of(content, recipe).shape for content in pictures.values()} == {recipe.shape}
