"""The page says what verification.json says.

It calls nothing passed that its own figures contradict.
"""

import re
from typing import Any

import pytest
from report_pages import BUDGET, Page, certificate, in_budget, link, row, verification, whole, within_a_tolerance

from deploy.report.page import report_html


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
            "Training also had 3 parts that deployment lacks, switched off for this comparison: 2 x a factor; 1 x dropout with probability 0.5.",
        ),
        (
            [("bn", "batch statistics of a BatchNorm")],
            "Training also had 1 part that deployment lacks, switched off for this comparison: 1 x batch statistics of a BatchNorm, "
            "so its training graph differed from the deployed one.",
        ),
        (
            [("means", "channel means of the batch, in the filters")],
            "Training also had 1 part that deployment lacks, switched off for this comparison: 1 x channel means of the batch, in the filters, "
            "so its training graph differed from the deployed one.",
        ),
        (
            [("precision", "the training steps computed in bfloat16")],
            "The training graph had nothing that the deployed one lacks. The training steps computed in bfloat16.",
        ),
    ],
    ids=["nothing", "noise", "batchnorm", "equinorm", "bfloat16"],
)
def test_a_pass_says_what_training_had_and_deployment_has_not(parts: list[tuple[str, str]], sentence: str) -> None:
    listed = [
        {"name": name, "kind": {"noise_1": "noise", "noise_2": "noise", "bn": "statistics", "means": "statistics"}.get(name, name), "what": what}
        for name, what in parts
    ]
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
    off = {"name": "bn", "kind": "statistics", "what": "batch statistics of a BatchNorm", "off_since_step": 110}
    acting = {"name": "dropout", "kind": "dropout", "what": "dropout with probability 0.5", "off_since_step": None}
    identical = "After step 110 of 176 the training graph and the deployed graph were identical"
    recomputed = "2 x batch statistics of a BatchNorm had been recomputed over the whole training set and frozen; "
    accuracies = "test accuracy 97.50% before, 97.25% right after recomputing, 98.00% at the end."
    text = Page(report_html({**whole(), "training_only": [off, off], "frozen_statistics": FROZEN})).text
    assert f"What was validated is what will run. {identical}: {recomputed}{accuracies} 3 links were compared" in text
    assert "bn batch statistics of a BatchNorm, frozen after step 110" in text
    text = Page(report_html({**whole(), "training_only": [off, acting, off], "frozen_statistics": FROZEN})).text
    assert (
        "Training also had 1 part that deployment lacks, switched off for this comparison: 1 x dropout with probability 0.5. "
        f"{identical} but for what is named above: {recomputed}{accuracies}"
    ) in text


def test_accuracies_that_are_no_numbers_are_not_shown_as_any() -> None:
    off = {"name": "bn", "kind": "statistics", "what": "batch statistics", "off_since_step": 110}
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


def test_the_certificate_is_a_table_of_its_layers() -> None:
    text = Page(report_html(whole(), certificate=certificate())).text
    assert "✓ holds The largest sum over any subset" in text
    assert "conv1 0 to 127" in text
    assert "65,535 16 8.00 7.25 safe keep off impossible" in text.replace("8 7.25", "8.00 7.25")
    assert "TF32 has to be off." in text
    assert "1 join of values of one step" in text
    joins = [{"name": name, "bits": 9, "without_branch_quantiser": gives} for name, gives in (("add_1", "the same"), ("add_2", "may differ"))]
    clipped = certificate(without_branch_quantisers=False, joins=joins)
    assert "A runtime must clip both branches to 8 bits in front of add_2." in Page(report_html(whole(), certificate=clipped)).text
    refused = certificate(verdict="refused", refusals=[{"node": "conv1", "reason": "is odd", "remedy": "export it again"}])
    assert "✕ refused conv1: is odd; export it again." in Page(report_html(whole(), certificate=refused)).text
    assert "certificate" not in Page(report_html(whole())).text
