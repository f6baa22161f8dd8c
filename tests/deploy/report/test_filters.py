"""Figures of filters are exact, and the charts of many layers take few characters."""

import json
import re

import numpy as np
import pytest
from report_pages import Page, diagnosed, epoch, layer, whole

from deploy.report.filters import filter_figures
from deploy.report.page import report_html


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
    assert re.findall(r"<title>(\d)</title>", gradients) == ["1", "2", "3"] * 2  # the wide and the narrow chart
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
