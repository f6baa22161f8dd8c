"""From image files to ranked classes: the right pixels, the model's own logits, a stable order."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from bundles import relist
from PIL import Image

from deploy.predict.predictor import Logits, LogitSource, Prediction, Predictor, opened_here
from deploy.runners.runtimes import open_file
from export.bundle import EXACT_FILES, Bundle, open_bundle
from export.errors import DamagedError, UsageError
from export.preprocess import ImageError, Pixels


@pytest.fixture
def opened(finished_run: Path) -> Bundle:
    return open_bundle(finished_run / "bundle")


@pytest.fixture
def digits(opened: Bundle, tmp_path: Path) -> tuple[list[str], Pixels]:
    """Forty stored test images as PNG files: with eight at a time, more than one batch of 32."""
    pixels = safetensors.numpy.load(opened.read("training/samples.safetensors"))["images"][:40]
    paths = [str(tmp_path / f"{place}.png") for place in range(len(pixels))]
    for path, each in zip(paths, pixels, strict=True):
        Image.fromarray(each[0]).save(path)
    return paths, pixels


@pytest.mark.parametrize(("form", "name"), [(None, "model.exact.onnx"), ("exact", "model.exact.onnx"), ("float32", "model.onnx")])
def test_the_logits_are_those_of_the_model_on_the_pixels_of_training(opened: Bundle, digits: tuple[list[str], Pixels], form: None, name: str) -> None:
    paths, pixels = digits
    with open_file("onnxruntime-cpu", opened.folder / name) as runner:
        logits = np.concatenate([runner.run({"image": some})["logits"] for some in (pixels[:32], pixels[32:])])
    with opened_here(opened, form=form) as source:
        found = list(Predictor(opened.manifest, source).predict_each(paths))
    assert source.facts == {"model": name, "runtime": "onnxruntime-cpu"}
    for prediction, row in zip(found, logits, strict=True):
        assert isinstance(prediction, Prediction)
        by_index = {each.index: each.logit for each in prediction.classes}
        assert [by_index[index] for index in range(10)] == row.tolist()
        assert prediction.classes[0].index == row.argmax()
        assert [each.logit for each in prediction.classes] == sorted(row.tolist(), reverse=True)
        assert {each.name for each in prediction.classes} == set(opened.manifest.classes)
        assert sum(each.probability for each in prediction.classes) == pytest.approx(1)


def giving(*rows: list[float]) -> LogitSource:
    left = iter(rows)
    return LogitSource(lambda pixels: np.array([next(left) for _ in pixels], np.float32), {}, batch=2)


def images(tmp_path: Path, number: int) -> list[str]:
    for place in range(number):
        Image.new("L", (8, 8), place).save(tmp_path / f"{place}.png")
    return [str(tmp_path / f"{place}.png") for place in range(number)]


def test_equal_logits_keep_the_order_of_the_classes(opened: Bundle, tmp_path: Path) -> None:
    found = Predictor(opened.manifest, giving([1.0, 2.0, *[1.0] * 8])).predict(images(tmp_path, 1)[0])
    assert [each.index for each in found.classes] == [1, 0, *range(2, 10)]
    assert found.classes[0].probability == pytest.approx(np.exp(2) / (np.exp(2) + 9 * np.exp(1)))


def test_a_damaged_image_leaves_the_others_their_own_answers(opened: Bundle, tmp_path: Path) -> None:
    good = images(tmp_path, 3)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    rows = [[float(place == index) for index in range(10)] for place in range(3)]
    found = list(Predictor(opened.manifest, giving(*rows)).predict_each([str(bad), *good, b""]))
    assert [each.classes[0].index for each in found if isinstance(each, Prediction)] == [0, 1, 2]
    assert [str(each).split(" in one")[0] for each in found if isinstance(each, ImageError)] == ["it is not an image", "it is empty"]
    assert isinstance(found[0], ImageError)
    assert isinstance(found[4], ImageError)


def test_bytes_and_a_path_are_the_same(opened: Bundle, tmp_path: Path) -> None:
    (path,) = images(tmp_path, 1)
    same = [[0.0] * 10] * 2
    predictor = Predictor(opened.manifest, giving(*same))
    assert predictor.predict(path) == predictor.predict(Path(path).read_bytes())
    with pytest.raises(ImageError, match="it is empty"):
        predictor.predict(b"")


@pytest.mark.parametrize("logits", [np.zeros((1, 9), np.float32), np.full((1, 10), np.nan, np.float32), np.zeros((2, 10), np.float32)])
def test_what_is_no_answer_is_refused(opened: Bundle, tmp_path: Path, logits: Logits) -> None:
    with pytest.raises(DamagedError, match="expected 1 x 10 finite numbers"):
        Predictor(opened.manifest, LogitSource(lambda pixels: logits, {}, 1)).predict(images(tmp_path, 1)[0])


def test_without_an_exact_form_the_float_file_is_run(bundle: Path) -> None:
    for name in EXACT_FILES:
        (bundle / name).unlink()
    relist(bundle)
    opened = open_bundle(bundle)
    with opened_here(opened) as source:
        assert source.facts["model"] == "model.onnx"
    with pytest.raises(UsageError, match="has no exact form, so --form exact is not possible"), opened_here(opened, form="exact"):
        pass


def test_predicting_imports_no_torch() -> None:
    code = "import sys, deploy.predict.predictor, deploy.predict.remote; sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
