"""`pipeline predict`: a table or JSON, what cannot be used by name, and a server instead."""

import json
from pathlib import Path

import pytest
from commands import pipeline
from PIL import Image
from stub_server import stub_server

from deploy.predict.predictor import opened_here
from export.bundle import open_bundle

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for place, path in enumerate(paths):
        Image.linear_gradient("L").resize((61, 40)).rotate(90 * place).convert("RGB").save(path)
    return paths


def test_a_table_of_the_top_classes(finished_run: Path, photographs: list[Path], capfd: Capture) -> None:
    done = pipeline(capfd, "predict", finished_run / "bundle", *photographs, "--top", 3)
    assert (done.code, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["image", "class", "logit", "probability"]
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(map(str, photographs))
    assert len(rows) == 6
    assert all(row.endswith("%") for row in rows)


def test_json_has_the_pixels_hash_and_the_logits_in_full(finished_run: Path, photographs: list[Path], capfd: Capture) -> None:
    done = pipeline(capfd, "predict", finished_run / "bundle", photographs[0], "--json", "--form", "float32")
    told = json.loads(done.out)
    assert (told["model"], told["runtime"]) == ("model.onnx", "onnxruntime-cpu")
    (found,) = told["predictions"]
    assert found["image"] == str(photographs[0])
    assert len(found["sha256_of_pixels"]) == 64
    assert [set(each) for each in found["classes"]] == [{"name", "index", "logit", "probability"}] * 5


def test_one_damaged_image_is_one_line_and_the_others_are_answered(finished_run: Path, photographs: list[Path], capfd: Capture) -> None:
    photographs[0].write_bytes(photographs[0].read_bytes()[:300])
    done = pipeline(capfd, "predict", finished_run / "bundle", *photographs)
    assert done.code == 5
    assert str(photographs[1]) in done.out
    assert done.err.startswith(f"error: {photographs[0]} cannot be used: ")
    assert done.err.count(str(photographs[0])) == 1
    assert done.error.endswith("; fix or remove it")


def test_several_damaged_images_are_each_named_once(finished_run: Path, photographs: list[Path], tmp_path: Path, capfd: Capture) -> None:
    missing = tmp_path / "missing.png"
    photographs[0].write_bytes(b"")
    done = pipeline(capfd, "predict", finished_run / "bundle", *photographs, missing, "--json")
    assert done.code == 5
    assert [each.get("error", "") for each in json.loads(done.out)["predictions"]] == ["it is empty", "", "No such file or directory"]
    assert done.err.splitlines() == [
        f"{photographs[0]} cannot be used: it is empty; fix or remove it",
        f"{missing} cannot be used: No such file or directory; fix or remove it",
        "error: 2 of 3 images cannot be used, each is named above",
    ]


def test_a_server_gives_the_same_answer(finished_run: Path, photographs: list[Path], capfd: Capture) -> None:
    bundle = open_bundle(finished_run / "bundle")
    here = pipeline(capfd, "predict", finished_run / "bundle", *photographs)
    with opened_here(bundle) as source, stub_server(bundle.manifest, source) as server:
        there = pipeline(capfd, "predict", finished_run / "bundle", *photographs, "--url", server.url)
    assert (there.code, there.out) == (0, here.out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--url", "http://127.0.0.1:9", "--form", "exact"), "--url asks a server"),
        (("--runtime", "abacus"), "runtime 'abacus' is not known; choose one of onnxruntime-cpu"),
        (("--top", "0"), "0 is not in the range"),
    ],
)
def test_options_that_cannot_be(finished_run: Path, photographs: list[Path], capfd: Capture, options: tuple[str, ...], words: str) -> None:
    done = pipeline(capfd, "predict", finished_run / "bundle", *photographs, *options)
    assert done.code == 2
    assert words in done.error
