"""What the report shows of differences: counts by distance, errors by layer, rankings, pictures.

Pictures show samples with their own pixels.
"""

import base64
import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.report.differences import histogram_of, inner_errors, pictures_of, worst_of
from deploy.report.page import report_html


def test_a_histogram_adds_up_its_outputs() -> None:
    record = {"outputs": [{"ulp_histogram": [90, 5, 3]}, {"ulp_histogram": [10]}, {"ulp_histogram": [0, 0, 0, 2]}]}
    view = histogram_of("a -> b", record)
    assert [(bar.label, bar.count) for bar in view.bars] == [("0", 100), ("1", 5), ("2 to 3", 3), ("4 to 7", 2)]
    assert view.num_values == 110
    assert [bar.length for bar in view.bars] == [100.0, *(100 * math.log1p(n) / math.log1p(100) for n in (5, 3, 2))]


def test_a_long_histogram_is_drawn_in_groups_that_cover_it() -> None:
    counts = [1] * 33
    view = histogram_of("a -> b", {"outputs": [{"ulp_histogram": counts}]})
    assert sum(bar.count for bar in view.bars) == 33
    assert (len(view.bars), view.bars[15].label, view.bars[16].label, view.bars[-1].label) == (21, "16,384 to 32,767", "2^15 to 2^19", "2^31 to 2^32")
    assert histogram_of("a -> b", {}).bars == ()


def test_errors_inside_share_one_scale() -> None:
    growth = [
        {"tensor": "t", "operation": "Conv", "layer": "one", "before": 1e-7, "after": 2e-7, "allowed": 4e-7},
        {"tensor": "u", "operation": "Gemm", "layer": "", "before": "NaN", "after": 1e-3, "allowed": 4e-6},
    ]
    view = inner_errors("a -> b", {"growth": growth})
    assert view is not None
    assert [row[0] for row in view.rows] == ["Conv of one", "Gemm (u)"]
    (_, before, after), (_, broken, over) = view.rows
    assert before.length is not None
    assert after.length is not None
    assert before.length < after.length
    assert broken.length is None
    assert over.length is not None
    assert over.limit is not None
    assert over.length > over.limit
    assert inner_errors("a -> b", {"growth": []}) is None


def test_a_picture_is_part_of_the_page() -> None:
    picture = b"\x89PNG and more"
    record = {"worst": [{"sample": 3, "output": "y", "max_abs": "Infinity", "before": [[1, 0.5], [0, 0.25]], "after": [[0, 0.5]]}]}
    (worst,) = worst_of(record, {3: picture})
    assert worst.picture == f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert worst.rows == (([1, 0.5], [0, 0.5]), ([0, 0.25], None))
    assert worst_of(record, {})[0].picture is None


LINK = {
    "from": "a",
    "to": "b",
    "status": "failed",
    "samples": 9,
    "required": "budget",
    "observed": "outside",
    "reason": "apart",
    "outputs": [{"name": "y", "ulp_histogram": [5, 2, 0, 1]}],
    "worst": [{"sample": 3, "output": "y", "max_abs": 0.5, "before": [[1, 0.5], [0, 0.25]], "after": [[0, 0.5], [1, 0.1]]}],
    "growth": [{"tensor": "t", "operation": "Conv", "layer": "one", "before": 1e-7, "after": 2e-7, "allowed": 4e-7}],
    "place": {
        "tensor": "<t>",
        "operation": "Conv",
        "layer": "one",
        "max_abs": 0.5,
        "error": 0.25,
        "allowed": 1e-6,
        "worst_sample": 3,
        "inputs": [{"tensor": "s", "error": 1e-8, "allowed": 1e-7, "inside": True}],
    },
}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed; the page is looked at in the test below")
def test_a_browser_draws_it_without_a_word_on_its_console(tmp_path: Path) -> None:
    picture = pictures_of({3: {"image": np.arange(48, dtype=np.uint8).reshape(3, 4, 4)}})
    page = tmp_path / "report.html"
    page.write_text(report_html({"verdict": "fail", "links": [LINK]}, pictures=picture), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    place = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run([*command, *quiet, *place], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'alt="Sample 3"' in done.stdout


def test_the_page_shows_them_and_runs_nothing() -> None:
    page = report_html({"verdict": "fail", "links": [LINK]}, facts={"classes": ["cat", "dog"]}, pictures={3: b"png"})
    for text in (
        "<b>Begins at</b>: Conv of <code>one</code> (<code>&lt;t&gt;</code>)",
        "Its input <code>s</code> is inside (1e-8 of 1e-7).",
        'src="data:image/png;base64,cG5n" alt="Sample 3"',
        "1 (dog)",
        'class="moved"',
        "how far apart, in units in the last place",
        "2 to 3",
        "the errors inside, layer by layer",
    ):
        assert text in page, text
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


GRAY = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 3, 4)


@pytest.mark.parametrize(("image", "expected"), [(GRAY, GRAY[0]), (COLOUR, COLOUR.transpose(1, 2, 0))])
def test_the_pixels_are_those_of_the_sample(image: np.ndarray, expected: np.ndarray) -> None:
    (picture,) = pictures_of({7: {"image": image}}).values()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": GRAY.astype(np.float32)},
        {"x": np.zeros((2, 3, 4), np.uint8)},
        {"x": np.zeros(5, np.uint8)},
        {"x": np.zeros((1, 600, 600), np.uint8)},
        {"x": GRAY, "y": GRAY},
    ],
)
def test_what_is_no_image_has_no_picture(inputs: dict[str, np.ndarray]) -> None:
    assert pictures_of({0: inputs}) == {}
