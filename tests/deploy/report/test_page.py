"""The page tolerates missing data, loads nothing, fits any screen, and describes the training."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_pages import BUDGET, Page, diagnosed, epoch, in_budget, layer, link, row, verification, whole, within_a_tolerance

from deploy.report.drawing import figure
from deploy.report.page import report_html


def test_what_is_missing_is_said() -> None:
    text = Page(report_html({})).text
    for sentence in (
        "Nothing was compared, and a comparison that compared nothing is a failure.",
        "The data holds no verdict",
        "There are no links: nothing was compared.",
        "No errors against float64 were recorded.",
        "Invariance to reruns and to the batch was not checked.",
        "No difference was recorded at any link.",
        "there are no top-1 ties to list.",
        "No training metrics came with this verdict",
        "No filter figures came with this verdict",
        "no noise, no dropout, no batch statistics are listed.",
        "No facts about the model were given.",
        "The samples are not described.",
        "The environment was not recorded.",
        "Versions and flags of the stages were not recorded.",
        "No hashes of the compared files were recorded.",
    ):
        assert sentence in text


@pytest.mark.parametrize("section", sorted(whole()))
def test_each_section_may_be_missing_or_empty(section: str) -> None:
    Page(report_html({key: value for key, value in whole().items() if key != section}))
    Page(report_html({**whole(), section: type(whole()[section])()}))


@pytest.mark.parametrize("key", sorted(link("a", "b")))
def test_each_field_of_a_link_may_be_missing(key: str) -> None:
    Page(report_html(verification({name: value for name, value in in_budget("a", "b").items() if name != key})))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", float("nan"), float("inf"), None])
def test_a_figure_that_is_no_number_breaks_nothing_and_uses_no_share_of_a_budget(value: Any) -> None:
    errors = [{"stage": "b", "max": value, "rms": value, "budget": BUDGET}]
    odd = in_budget("a", "b", max_abs=value, max_ulp=2**63, status="failed", observed="outside")
    html = report_html(verification(odd, verdict="fail", errors=errors))
    shown = "-" if value is None else figure(value)
    assert f"9,223,372,036,854,775,808 {shown} 8e-6 > 100 %" in row(html, "a → b")
    assert 'class="fill over" width="100%"' in html


def test_hostile_words_stay_words() -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> \ud800"
    tie = {"margin": 0.0, "sample": 1, "output": hostile, "classes": [0, 1]}
    first = {"output": hostile, "index": [0], "sample": 0, "values": [hostile, 1], "bits": [hostile]}
    bad = in_budget(hostile, hostile + "2", runtime=hostile, device=hostile, reason=hostile, changes=[tie], first_difference=first)
    data = verification(
        bad,
        errors=[{"stage": hostile, "max": 1e-6, "rms": 1e-6}],
        invariance=[{"stage": hostile, "check": hostile, "status": hostile, "reason": hostile}],
        environment={hostile: hostile},
        stages={hostile: {hostile: [hostile]}},
        files={hostile: hostile},
        samples={hostile: hostile},
        training_only=[{"name": hostile, "what": hostile}],
        not_foldable=[{"name": hostile, "what": hostile}],
        **{hostile: hostile},
    )
    facts = {"network": hostile, "classes": [hostile, hostile], hostile: hostile, "files": {hostile: hostile}}
    wild = [diagnosed(1, gradient_norm=hostile, deflated=[hostile] * 5), {"epoch": hostile}, {}]
    html = report_html(data, metrics=[epoch(1, lr=hostile)], filters=[layer(hostile, hostile)], facts=facts, diagnosed=wild)
    html.encode()
    tags = {tag for tag, _ in Page(html).tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "a", "form", "base"}
    assert not [name for _, attrs in Page(html).tags for name in attrs if name.startswith("on")]


def test_the_page_asks_nothing_of_a_network() -> None:
    html = report_html(whole(), metrics=[epoch(1), epoch(2)], filters=[layer()], facts={"network": "resnet20"})
    assert not re.search(r"https?:|//\w|url\(|@import|xmlns|<script|<link", html)
    names = {name for _, attrs in Page(html).tags for name in attrs}
    assert not names & {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
    assert "default-src 'none'" in html


def test_pictures_and_tables_can_be_read_aloud() -> None:
    page = Page(report_html(whole(), metrics=[epoch(1), epoch(2)], filters=[layer()]))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert pictures
    assert all(attrs.get("aria-hidden") == "true" or attrs.get("aria-label") for attrs in pictures)
    headers = [attrs for tag, attrs in page.tags if tag == "th"]
    assert all(attrs.get("scope") in ("col", "row") for attrs in headers)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", report_html({}), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    tones = [(tone, f"{tone}-back") for tone in ("bitwise", "budget", "tolerance", "failed", "absent")]
    inks = ("ink", "soft", "test", "train", "bitwise", "budget", "tolerance", "failed", "absent")
    plain = [(ink, back) for ink in inks for back in ("card", "page")]
    faint = [("ink", "faint"), ("soft", "faint"), ("ink", "bitwise-back"), ("ink", "failed-back")]
    for ink, back in [*tones, *plain, *faint]:
        low, high = sorted((_luminance(colours[ink]), _luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, back)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed; the page is parsed in the tests above")
def test_a_browser_draws_it_without_a_word_on_its_console(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html(whole(), metrics=[epoch(1), epoch(2)], filters=[layer()]), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    place = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run([*command, *quiet, *place], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert "What was validated is what will run." in done.stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed; the page is parsed in the tests above")
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_a_phone_or_a_screen(tmp_path: Path, width: int) -> None:
    """The page in a frame of that width, which tells how wide its content is."""
    first = {"output": "logits", "index": [17, 1], "sample": 17, "values": [1.5, 1.25], "bits": ["0x3fc0", "0x3fa0"]}
    links = [within_a_tolerance("reference", "candidate"), in_budget("reference", "candidate, onnxruntime-cpu", first_difference=first)]
    checks = ("rerun", "alone", "batches", "partial", "duplicated", "layout", "threads", "optimisation")
    of_all = {
        "stage": "candidate",
        "required": "tolerance",
        "observed": "tolerance",
        "status": "passed",
        "samples": 64,
        "max_ulp": 2880,
        "max_abs": 2e-6,
    }
    invariance = [{**of_all, "check": check, "settings": [f"{check}: extended", f"{check}: all"]} for check in checks]
    pages = {"whole.html": whole(), "pair.html": verification(*links, invariance=invariance, files={"reference model.onnx": "9f" * 32})}
    for name, content in pages.items():
        (tmp_path / name).write_text(report_html(content, metrics=[epoch(1), epoch(2)], filters=[layer()]), encoding="utf-8")
        told = "this.contentDocument.documentElement.scrollWidth + ' of ' + this.contentWindow.innerWidth"
        frame = tmp_path / "frame.html"
        frame.write_text(f'<iframe src="{name}" width="{width}" height="900" onload="document.title = {told}"></iframe>')
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files"]
        place = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
        done = subprocess.run([*command, *place], capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
        assert found is not None
        assert int(found[1]) <= int(found[2]) == width, name


def test_training_is_told_in_a_sentence_and_drawn() -> None:
    html = report_html(whole(), metrics=[epoch(1), epoch(2), epoch(3, train_loss=0.125)])
    text = Page(html).text
    assert "3 epochs in 6 s of training steps; 700 images per second in the median epoch; 256 MiB of memory" in text
    assert "best test accuracy 93.00 % (epoch 3)" in text
    assert "train 0.125" in text
    assert html.count('class="curve train"') == 2


def test_a_network_that_was_trained_elsewhere_has_no_epochs() -> None:
    text = Page(report_html(whole(), metrics=[{"epoch": 0, "step": 0, "test_loss": 1.5, "test_accuracy": 0.25}])).text
    assert "The network was trained elsewhere; its test accuracy as it was given is 25.00 %." in text
    assert "training steps" not in text


def test_numbers_that_are_none_leave_a_gap_and_are_named() -> None:
    metrics = [epoch(1), epoch(2, train_loss="NaN"), epoch(3, test_loss=float("inf")), epoch(4, test_accuracy=None)]
    text = Page(report_html(whole(), metrics=metrics)).text
    assert "epoch 2: train_loss is NaN; epoch 3: test_loss is inf; epoch 4: test_accuracy is missing." in text
    assert "best test accuracy 93.00 % (epoch 3)" in text
