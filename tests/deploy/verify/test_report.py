"""report.html says what verification.json says, asks nothing of a network, and breaks on nothing that is missing."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.verify.report import figure, filter_figures, report_html

BUDGET = {"max": 8.0e-6, "rms": 1.0e-6}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def link(start: str, end: str, **changes: Any) -> dict[str, Any]:
    outputs = [{"name": "logits", "dtype": "float32"}]
    found = {
        "from": start,
        "to": end,
        "runtime": "torch",
        "device": "cpu",
        "required": "bitwise",
        "observed": "bitwise",
        "status": "passed",
        "reason": "",
        "samples": 365,
        "outputs": outputs,
        "max_ulp": 0,
        "max_abs": 0.0,
        "budget": None,
        "top1_changes": 0,
        "ties": 0,
        "changes": [],
        "first_difference": None,
    }
    return {**found, **changes}


def in_budget(start: str, end: str, **changes: Any) -> dict[str, Any]:
    found = {"required": "budget", "observed": "budget", "budget": BUDGET, "max_ulp": 37, "max_abs": 4.5e-6}
    return link(start, end, **{**found, **changes})


def verification(*links: dict[str, Any], verdict: str = "pass", **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "links": list(links), **more}


def whole() -> dict[str, Any]:
    """Everything that a passing run can say."""
    tie = {"margin": 3.25e-7, "sample": 204, "output": "logits", "classes": [0, 1]}
    first = {"output": "logits", "index": [17, 1], "sample": 17, "values": [1.5, 1.25], "bits": ["0x3fc0", "0x3fa0"]}
    checks = {"required": "budget", "status": "passed", "reason": "", "samples": 8}
    return verification(
        link("training graph", "folded graph"),
        in_budget("folded graph", "ONNX file", first_difference=first),
        in_budget("ONNX file", "onnxruntime-cpu", top1_changes=1, ties=1, changes=[tie]),
        link("ONNX file", "tensorrt", status="not run", observed=None, samples=0, outputs=[], reason="no GPU is here"),
        errors=[
            {"stage": "training graph", "max": 2.0e-6, "rms": 2.5e-7, "budget": None},
            {"stage": "ONNX file", "max": 1.0e-6, "rms": 2.5e-7, "budget": BUDGET},
            {"stage": "onnxruntime-cpu", "max": 4.0e-6, "rms": 2.5e-7, "budget": BUDGET},
        ],
        invariance=[
            {"stage": "ONNX file", "check": "rerun", "observed": "bitwise", "max_ulp": 0, "max_abs": 0.0, **checks},
            {"stage": "ONNX file", "check": "alone", "observed": "budget", "max_ulp": 21, "max_abs": 2e-6, **checks},
        ],
        environment={"python": "3.11.2", "packages": {"torch": "2.14.1"}},
        stages={"ONNX file": {"runtime": "onnxruntime", "flags": {"level": "ORT_DISABLE_ALL"}}},
        files={"model.onnx": "9f" * 32},
        samples={"sha256": "ab" * 32, "count": 365, "how": ["the test set", "hostile images"]},
        training_only=[{"name": "noise_1", "what": "multiplies by a uniform factor"}],
    )


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    figures = {"train_loss": 1 / number, "train_accuracy": 0.5, "test_loss": 0.75, "test_accuracy": 0.9 + number / 100}
    costs = {"seconds": 2.0, "images_per_second": 700.0, "peak_memory_bytes": 2**28}
    return {"epoch": number, "step": number * 10, "lr": 0.4, **figures, **costs, **changes}


def layer(name: str = "conv", kind: str = "spatial") -> dict[str, Any]:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    return filter_figures(name, kind, weight, np.full(4, 0.75, np.float32))


def row(html: str, name: str) -> str:
    """The text of the part of a table that begins with this name; a dash is written as a hyphen."""
    bodies = re.findall(r'<tbody role="rowgroup">.*?</tbody>', html, re.DOTALL)
    texts = [Page(body).text.replace("\N{EN DASH}", "-") for body in bodies]
    return next(text for text in texts if text.startswith(name))


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_every_link_stands_in_the_table_with_its_status_and_figures() -> None:
    html = report_html(whole())
    assert row(html, "training graph → folded graph") == (
        "training graph → folded graph torch, cpu = passed, same bits bitwise bitwise 0 0 - - 0 0 365 logits"
    )
    assert row(html, "folded graph → ONNX file") == (
        "folded graph → ONNX file torch, cpu ≈ passed, in budget budget budget 37 4.5e-6 8e-6 25 % 0 0 365 logits"
    )
    assert row(html, "ONNX file → onnxruntime-cpu").endswith("37 4.5e-6 8e-6 50 % 1 1 365 logits")
    assert row(html, "ONNX file → tensorrt") == ("ONNX file → tensorrt torch, cpu - not run bitwise - - - - - - - 0 - Reason : no GPU is here")


def test_the_picture_words_every_link_in_both_of_its_forms() -> None:
    html = report_html(whole())
    pictures = re.findall(r'<svg class="chart (?:wide|tall)".*?</svg>', html, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        text = Page(picture).text
        for words in ("passed, same bits", "passed, in budget", "not run", "nothing compared", "0 ulp, abs 0"):
            assert words in text
        assert "37 ulp, abs 4.5e-6 budget 8e-6: 50 % top-1: 1 ties" in text


def test_a_pass_is_a_sentence_with_what_was_compared_and_what_was_not() -> None:
    text = Page(report_html(whole())).text
    assert "✓ PASS What was validated is what will run." in text
    assert "3 links were compared on 365 samples; all hold: 1 to the last bit and 2 within the derived budget." in text
    assert "Not run, and so not part of this verdict: ONNX file → tensorrt (no GPU is here)." in text


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "The training graph had nothing that the deployed one lacks."),
        (
            [("noise_1", "a factor"), ("noise_2", "a factor"), ("dropout", "dropout with probability 0.5")],
            "Training also had 3 parts that deployment has not, switched off for this comparison: 2 x a factor; 1 x dropout with probability 0.5.",
        ),
        (
            [("bn", "batch statistics of a BatchNorm")],
            "Training also had 1 part that deployment has not, switched off for this comparison: 1 x batch statistics of a BatchNorm, "
            "so its training graph was another than the deployed one.",
        ),
        (
            [("means", "channel means of the batch, in the filters")],
            "Training also had 1 part that deployment has not, switched off for this comparison: 1 x channel means of the batch, in the filters, "
            "so its training graph was another than the deployed one.",
        ),
        (
            [("precision", "the training steps computed in bfloat16")],
            "The training graph had nothing that the deployed one lacks. The training steps computed in bfloat16.",
        ),
    ],
    ids=["nothing", "noise", "batchnorm", "equinorm", "bfloat16"],
)
def test_a_pass_says_what_training_had_and_deployment_has_not(parts: list[tuple[str, str]], sentence: str) -> None:
    listed = [{"name": name, "what": what} for name, what in parts]
    text = Page(report_html({**whole(), "training_only": listed})).text
    assert f"✓ PASS What was validated is what will run. {sentence} 3 links were compared" in text
    failed = report_html({**whole(), "training_only": listed, "verdict": "fail"})
    assert sentence not in Page(failed).text


def test_what_cannot_fold_is_said_and_listed() -> None:
    kept = [{"name": "network.bn1", "what": "group normalisation"}, {"name": "network.bn2", "what": "group normalisation"}]
    text = Page(report_html({**whole(), "not_foldable": kept})).text
    assert "Not foldable: 2 x group normalisation. These layers are deployed as they were trained" in text
    assert "network.bn2 group normalisation" in text
    assert "ot foldable" not in Page(report_html({**whole(), "not_foldable": []})).text


FROZEN = {"since_step": 110, "last_step": 176, "accuracy_before": 0.975, "accuracy_recomputed": 0.9725, "accuracy_at_end": 0.98}


def test_a_pass_says_since_when_training_did_without_what_deployment_has_not() -> None:
    off = {"name": "bn", "what": "batch statistics of a BatchNorm", "off_since_step": 110}
    acting = {"name": "dropout", "what": "dropout with probability 0.5", "off_since_step": None}
    identical = "After step 110 of 176 the training graph and the deployed graph were identical"
    recomputed = "2 x batch statistics of a BatchNorm had been recomputed over the whole training set and frozen; "
    accuracies = "test accuracy 97.50% before, 97.25% right after recomputing, 98.00% at the end."
    text = Page(report_html({**whole(), "training_only": [off, off], "frozen_statistics": FROZEN})).text
    assert f"What was validated is what will run. {identical}: {recomputed}{accuracies} 3 links were compared" in text
    assert "bn batch statistics of a BatchNorm, frozen after step 110" in text
    text = Page(report_html({**whole(), "training_only": [off, acting, off], "frozen_statistics": FROZEN})).text
    assert (
        "Training also had 1 part that deployment has not, switched off for this comparison: 1 x dropout with probability 0.5. "
        f"{identical} but for what is named above: {recomputed}{accuracies}"
    ) in text


def test_accuracies_that_are_no_numbers_are_not_shown_as_any() -> None:
    off = {"name": "bn", "what": "batch statistics", "off_since_step": 110}
    broken = {**FROZEN, "accuracy_recomputed": "NaN", "accuracy_at_end": None}
    text = Page(report_html({**whole(), "training_only": [off], "frozen_statistics": broken})).text.replace("\N{EN DASH}", "-")
    assert "test accuracy 97.50% before, - right after recomputing, - at the end." in text


def test_what_training_had_is_not_guessed_where_it_was_not_recorded() -> None:
    assert "✓ PASS What was validated is what will run. 1 link was compared" in Page(report_html(verification(link("a", "b")))).text


def test_a_link_with_the_same_bits_has_no_share_of_a_budget() -> None:
    errors = [{"stage": "b", "max": 2.0e-6, "rms": 2.5e-7}]
    html = report_html(verification(link("a", "b", budget=BUDGET), errors=errors))
    assert row(html, "a → b") == "a → b torch, cpu = passed, same bits bitwise bitwise 0 0 8e-6 - 0 0 365 logits"
    assert "25 %" not in Page(html).text


def test_a_failure_names_the_link_and_the_reason() -> None:
    failed = in_budget("ONNX file", "onnxruntime-cpu", status="failed", observed="outside", reason="error 4e-3.")
    text = Page(report_html(verification(link("a", "ONNX file"), failed, verdict="fail"))).text
    assert "✕ FAIL The outputs are not the same." in text
    assert "ONNX file → onnxruntime-cpu failed: error 4e-3." in text


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed"},
        {"status": "maybe"},
        {"observed": "budget"},
        {"observed": "outside", "required": "budget"},
        {"observed": None},
        {"samples": 0},
        {"max_ulp": 1},
        {"observed": "budget", "required": "budget", "top1_changes": 2, "ties": 1},
        {"observed": "budget", "required": "budget", "budget": {"max": 9.0e-7, "rms": 1.0}},
    ],
    ids=str,
)
def test_a_pass_that_its_own_figures_contradict_is_shown_as_a_failure(changes: dict[str, Any]) -> None:
    html = report_html(verification(link("a", "b"), link("b", "c", **changes), errors=[{"stage": "c", "max": 1e-6, "rms": 1e-7}]))
    assert "<title>FAIL" in html
    assert "✕ FAILED" in row(html, "b → c")
    assert "contradict" in Page(html).text


def test_a_failed_invariance_check_and_links_that_all_did_not_run_are_no_pass() -> None:
    check = {"stage": "b", "check": "alone", "status": "failed", "reason": "other bits", "observed": "outside"}
    absent = link("a", "b", status="not run", observed=None, samples=0)
    assert "<title>FAIL" in report_html(verification(link("a", "b"), invariance=[check]))
    assert "b failed the check alone: other bits." in report_html(verification(link("a", "b"), invariance=[check]))
    assert "<title>FAIL" in report_html(verification(absent))
    assert "Nothing was compared" in report_html(verification(absent))


def test_a_failed_check_is_not_hidden_by_a_passed_one_of_the_same_name() -> None:
    passed = {
        "stage": "b",
        "check": "alone",
        "required": "bitwise",
        "observed": "bitwise",
        "status": "passed",
        "samples": 1,
    }
    failed = {**passed, "status": "failed", "reason": "row 3 differs"}
    for checks in ([passed, failed], [failed, passed]):
        html = report_html(verification(link("a", "b"), invariance=checks))
        assert "row 3 differs" in html[html.index('id="invariance"') : html.index('id="differences"')]


def test_everything_else_in_the_verdict_is_shown() -> None:
    text = Page(report_html(whole(), facts={"network": "resnet20", "classes": ["cat", "dog"], "files": {"a": "cd" * 32}})).text
    for words in (
        "4e-6 of 8e-6 allowed",
        "21 ulp, abs 2e-6, 8 samples, required budget",
        "First difference: sample 17, logits[17, 1] : 1.5 against 1.25 (bits 0x3fc0 and 0x3fa0 ).",
        "204 logits 0 (cat) 1 (dog) 3.25e-7",
        "noise_1 multiplies by a uniform factor",
        "torch 2.14.1",
        "level ORT_DISABLE_ALL",
        "model.onnx " + "9f" * 32,
        "ab" * 32,
        "the test set, hostile images",
        "cd" * 32,
    ):
        assert words in text


def test_what_no_section_knows_is_still_shown() -> None:
    assert "Also recorded signature 1234abcd" in Page(report_html({**whole(), "signature": "1234abcd"})).text


# ---- training and filters -------------------------------------------------------------------------------------------


def test_training_is_told_in_a_sentence_and_drawn() -> None:
    html = report_html(whole(), metrics=[epoch(1), epoch(2), epoch(3, train_loss=0.125)])
    text = Page(html).text
    assert "3 epochs in 6 s of training steps; 700 images per second in the median epoch; 256 MiB of memory" in text
    assert "best test accuracy 93.00 % (epoch 3)" in text
    assert "train 0.125" in text
    assert html.count('class="curve train"') == 2


def test_numbers_that_are_none_leave_a_gap_and_are_named() -> None:
    metrics = [epoch(1), epoch(2, train_loss="NaN"), epoch(3, test_loss=float("inf")), epoch(4, test_accuracy=None)]
    text = Page(report_html(whole(), metrics=metrics)).text
    assert "epoch 2: train_loss is NaN; epoch 3: test_loss is inf; epoch 4: test_accuracy is missing." in text
    assert "best test accuracy 93.00 % (epoch 3)" in text


def test_filter_figures_are_exact_on_a_known_weight() -> None:
    weight = np.zeros((2, 1, 2, 2), np.float32)
    weight[0, 0] = [[3, -3], [0, 0]]
    weight[1, 0] = 2
    figures = filter_figures("conv", "spatial", weight, np.array([0.5, 1.5], np.float32))
    assert figures["norms"] == [4, 4 + (18**0.5 - 4) / 4, (4 + 18**0.5) / 2, 4 + 3 * (18**0.5 - 4) / 4, 18**0.5]
    assert figures["slice_means"] == [0, 0.5, 1, 1.5, 2]
    assert figures["off_isocline"] == [0, 0.25, 0.5, 0.75, 1]
    assert figures["scale"] == [0.5, 0.75, 1, 1.25, 1.5]
    assert (figures["num_filters"], figures["num_not_finite"], figures["mean_over"]) == (2, 0, "slice")


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)])
def test_a_filter_without_extent_has_its_mean_over_its_inputs(shape: tuple[int, ...]) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(shape)
    figures = filter_figures("fc", "classifier", weight, None)
    assert figures["slice_means"] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert (figures["mean_over"], figures["scale"]) == ("filter", None)


def test_filters_that_are_not_finite_are_counted_and_left_out() -> None:
    weight = np.ones((3, 2, 3, 3), np.float32)
    weight[1, 0, 0, 0] = np.nan
    figures = filter_figures("conv", "spatial", weight, np.array([1, np.inf, 1], np.float32))
    assert figures["num_not_finite"] == 1
    assert figures["norms"] == [18**0.5] * 5
    assert figures["scale"] == [1] * 5
    assert filter_figures("conv", "spatial", weight[1:2], None)["norms"] is None
    json.dumps(figures, allow_nan=False)
    assert "1 filters hold NaN or infinity" in Page(report_html(whole(), filters=[figures])).text


def test_a_zero_filter_lies_on_its_isocline() -> None:
    assert filter_figures("conv", "spatial", np.zeros((1, 1, 3, 3)), None)["off_isocline"] == [0] * 5


def test_hundred_layers_stay_a_small_file_with_a_row_each() -> None:
    html = report_html(whole(), filters=[layer(f"layer{number}") for number in range(110)])
    assert len(html) < 400_000
    assert all(f'<th scope="row">layer{number}</th>' in html for number in range(110))
    assert "110 layers in the order of the graph" in html


def diagnosed(number: int, **changes: Any) -> dict[str, Any]:
    """The figures of two layers after an epoch."""
    more = {"deflated": 0.25, "variance": None, "gradient_norm": 0.1 * number, **changes}
    return {"epoch": number, "layers": [{**layer("one"), **more}, {**layer("two"), **more, "variance": [1.0, 2.0, 3.0, 4.0, 5.0]}]}


def test_layers_are_drawn_from_epoch_to_epoch() -> None:
    html = report_html(whole(), metrics=[epoch(1), epoch(2), epoch(3)], filters=[layer()], diagnosed=[diagnosed(1), diagnosed(3)])
    drawn = html.split("The layers from epoch to epoch")[1]
    titles = re.findall(r"<h3>(.*?)</h3>", drawn.split("</section>")[0])
    assert titles == [
        "Norm of each filter",
        "Mean of each slice",
        "Distance from zero mean",
        "Scale of each filter",
        "Share of deflated filters",
        "Variance in front of a norm",
        "Norm of the gradient",
    ]
    gradients = drawn.split("<h3>Norm of the gradient</h3>")[1].split("</div>")[0]
    assert re.findall(r"<title>(\d)</title>", gradients) == ["1", "2", "3"] * 2  # the wide and the narrow picture
    assert [path.count("M") for path in re.findall(r'class="median" d="(.*?)"', gradients)] == [2, 2]  # the second epoch has no box


def test_zeros_throughout_are_no_picture() -> None:
    html = report_html(whole(), metrics=[epoch(1)], filters=[layer()], diagnosed=[diagnosed(1, deflated=0.0)])
    assert "Share of deflated filters" not in html
    assert "Norm of the gradient" in html


def test_nothing_is_said_of_epochs_that_were_not_diagnosed() -> None:
    assert "from epoch to epoch" not in report_html(whole(), metrics=[epoch(1)], filters=[layer()])


def test_figures_come_back_from_json_unchanged() -> None:
    metrics, filters = [epoch(1), epoch(2)], [layer()]
    again = json.loads(json.dumps([whole(), metrics, filters]))
    assert report_html(again[0], metrics=again[1], filters=again[2]) == report_html(whole(), metrics=metrics, filters=filters)


# ---- what is missing, broken or hostile -----------------------------------------------------------------------------


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


# ---- colours --------------------------------------------------------------------------------------------------------


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


# ---- in a browser ---------------------------------------------------------------------------------------------------


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
    """The page in a frame of that width, which says how wide its content is."""
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


def within_a_tolerance(start: str, end: str, **changes: Any) -> dict[str, Any]:
    chosen = {"max_ulp": 4, "atol": None, "rtol": None, "chosen_by": "a human"}
    found = {"required": "tolerance", "observed": "tolerance", "tolerance": chosen, "max_ulp": 3, "max_abs": 4.5e-6}
    return link(start, end, **{**found, **changes})


def test_what_a_human_chose_is_a_pass_that_says_so() -> None:
    page = Page(report_html(verification(within_a_tolerance("reference", "candidate")), facts={"reference": "a.pt2", "candidate": "b.onnx"}))
    assert "PASS The outputs are as near as a human said they must be." in page.text
    assert "all hold: 1 within a tolerance that a human chose" in page.text
    assert "Tolerance : ulp 4; not derived but chosen by a human." in page.text.replace("Tolerance:", "Tolerance :")
    assert "training graph" not in page.text.partition("The chain")[0]
    assert "contradict" not in page.text


def test_a_tolerance_that_was_not_kept_is_a_failure() -> None:
    wrong = within_a_tolerance("reference", "candidate", status="failed", observed="outside", reason="2 values are beyond 4 ulp")
    assert "FAIL The outputs are not the same." in Page(report_html(verification(wrong, verdict="fail"))).text
    lies = within_a_tolerance("reference", "candidate", observed="outside")
    assert "its own figures contradict it" in Page(report_html(verification(lies))).text


def test_an_output_that_hardly_depends_on_the_samples_is_told() -> None:
    def told(spread: float) -> str:
        output = {"name": "logits", "num_samples": 9, "spread": spread}
        errors = [{"stage": "candidate", "output": "logits", "samples": 9, "max": 1e-6, "rms": 1e-7, "budget": BUDGET}]
        return Page(report_html(verification(in_budget("reference", "candidate", outputs=[output]), errors=errors))).text

    assert "logits hardly depends on the samples (it varies by 1e-09): a fault in front of what makes it constant would not show." in told(1e-9)
    assert "hardly depends" not in told(1.0)


def test_a_pair_that_is_the_same_has_no_training_to_speak_of() -> None:
    page = Page(report_html(verification(in_budget("reference", "candidate"), training_only=[]), facts={"reference": "a", "candidate": "b"}))
    assert "PASS Both are the same function." in page.text
    assert "The training graph had nothing" not in page.text


def certificate(**changes: object) -> dict[str, object]:
    row = {
        "name": "conv1",
        "input_low": 0,
        "input_high": 127,
        "input_step": 0.25,
        "weight_step_min": 2**-9,
        "weight_step_max": 2**-7,
        "largest_weight": 126,
        "largest_sum": 65535,
        "bits": 16,
        "headroom_bits": 8.0,
        "plain_headroom_bits": 7.25,
        "int16_pairs_safe": True,
        "tf32_safe": False,
        "ties": "impossible",
    }
    whole = {"verdict": "holds", "exact_below": 2**24, "tf32_safe": False, "without_branch_quantisers": True, "layers": [row], "joins": [{"bits": 9}]}
    return {**whole, "refusals": [], **changes}


def test_the_certificate_is_a_table_of_its_layers() -> None:
    text = Page(report_html(whole(), certificate=certificate())).text
    assert "✓ holds The largest sum over any subset" in text
    assert "conv1 0 to 127" in text
    assert "65,535 16 8.00 7.25 safe keep off impossible" in text.replace("8 7.25", "8.00 7.25")
    assert "TF32 has to be off." in text
    assert "1 join of values of one step" in text
    refused = certificate(verdict="refused", refusals=[{"node": "conv1", "reason": "is odd", "remedy": "export it again"}])
    assert "✕ refused conv1: is odd; export it again." in Page(report_html(whole(), certificate=refused)).text
    assert "certificate" not in Page(report_html(whole())).text
