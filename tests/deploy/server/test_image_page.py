"""The server's page in a real browser, and the images that it takes: decoded by the recipe."""

import io
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_process import ServerProcess, serving

from deploy.compare.validated import ValidatedOutputs
from deploy.predict.predictor import Predictor, opened_here
from export.bundle import open_bundle


def png(rows: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "PNG")
    return file.getvalue()


def sent(server: ServerProcess, image: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{server.url}/images", image)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_an_image_gets_what_predict_gives(server: ServerProcess, validated: ValidatedOutputs, finished_run: Path) -> None:
    assert validated.exact is not None
    status, answer = sent(server, png(validated.images[5, 0]))
    assert status == 200
    assert answer["classes"][0]["index"] == int(validated.exact[5].argmax())
    assert answer["bits"] == "exact"
    bundle = open_bundle(finished_run / "bundle")
    large = png(np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8))
    status, answer = sent(server, large)
    with opened_here(bundle) as source:
        expected = Predictor(bundle.manifest, source).predict(large)
    assert status == 200
    assert answer["sha256_of_pixels"] == expected.sha256_of_pixels
    assert [each["logit"] for each in answer["classes"]] == [each.logit for each in expected.classes[:5]]


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        (b"", 400, "the image cannot be used"),
        (b"GIF89a", 400, "the image cannot be used"),
        (png(np.zeros((8, 8), np.uint8))[:-60], 400, "the image cannot be used"),
        (b"x" * (17 * 2**20), 413, "expected at most"),
    ],
    ids=["empty", "no image", "cut off", "17 MiB"],
)
def test_what_is_no_image_is_refused(server: ServerProcess, image: bytes, status: int, message: str) -> None:
    found, answer = sent(server, image)
    assert (found, list(answer)) == (status, ["error"])
    assert message in answer["error"]


def test_the_page_needs_nothing_from_outside(server: ServerProcess) -> None:
    with urllib.request.urlopen(server.url, timeout=20) as answer:
        text = answer.read().decode()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "http://" not in text
    assert "https://" not in text
    assert "prefers-color-scheme:dark" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed; the page's answers are tested above")
@pytest.mark.filterwarnings("ignore")  # of the browser's driver
def test_in_a_browser(server: ServerProcess, validated: ValidatedOutputs, tmp_path: Path) -> None:
    """It says whether the bits are the validated ones, and shows the classes of a dropped image."""
    from playwright.sync_api import sync_playwright

    assert validated.exact is not None
    (tmp_path / "digit.png").write_bytes(png(validated.images[5, 0]))
    (tmp_path / "none.png").write_bytes(b"nothing")
    requests, complaints = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 700})
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.goto(server.url)
            page.locator("#verdict", has_text="Verified here").wait_for()
            assert page.inner_text("h1") == server.name
            assert "the same bits as in validation" in page.inner_text("#verdict")
            assert "Input `image`" in page.inner_text("#card")
            page.set_input_files("#file", str(tmp_path / "digit.png"))
            page.wait_for_selector("#answer table")
            assert page.inner_text("#answer tr:first-child td:first-child") == str(validated.exact[5].argmax())
            assert "bits: exact" in page.inner_text("#answer .soft")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is wider than the screen"
        assert complaints == []
        page.set_input_files("#file", str(tmp_path / "none.png"))
        page.wait_for_selector("#answer .bad")
        assert "cannot be used" in page.inner_text("#answer .bad")
        browser.close()
    assert all(url.startswith((server.url, "blob:")) for url in requests)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.filterwarnings("ignore")
def test_in_a_browser_with_a_token(finished_run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "token").write_text("s3cret", encoding="ascii")
    options = ("--runtime", "onnxruntime-cpu", "--token-file", str(tmp_path / "token"))
    with serving(finished_run / "bundle", tmp_path, *options) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#login:not([hidden])")
        page.fill("#token", "s3cret")
        page.press("#token", "Enter")
        page.locator("#verdict", has_text="Verified here").wait_for()
        browser.close()
