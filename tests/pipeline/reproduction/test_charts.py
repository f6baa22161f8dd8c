"""Charts hold the figures of a result; sheets put them on axes."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.reproduction.charts import Chart, Series, charts_of, sheet_of
from pipeline.reproduction.figures import Divergence, RunFigures
from pipeline.reproduction.papers import PrintedFigure
from pipeline.reproduction.result import Group, Result
from pipeline.reproduction.sheet import Area, Dot, Line, Words


def run(seed: int, accuracies: list[float], diverged: bool = False) -> RunFigures:
    records = tuple(
        {"epoch": epoch, "test_accuracy": value / 100, "train_accuracy": 0.5, "seconds": 60.0, "peak_memory_bytes": 2**20}
        for epoch, value in enumerate(accuracies, start=1)
    )
    return RunFigures(Path(f"seed-{seed}"), seed, records, Divergence(len(records) + 1, "") if diverged else None, ())


def group(name: str, *runs: RunFigures, rate: float = 0.1, **more: object) -> Group:
    return Group(name=name, cells=(name,), epochs=3, num_planned=len(runs), runs=runs, rate=rate, **more)  # type: ignore[arg-type]


def result(*groups: Group, **more: object) -> Result:
    values: dict[str, object] = {"name": "t", "subject": "A table", "columns": ("method",), "quantities": ("accuracy",), "statistic": "mean and std"}
    values |= {"memory_unit": "MB", "picture": "epochs", "notes": (), "of_a_paper": True}
    return Result(groups=groups, **values | more)  # type: ignore[arg-type]


def test_a_curve_is_the_mean_and_its_band_the_deviation() -> None:
    (chart,) = charts_of(result(group("a", run(0, [10, 20, 30]), run(1, [12, 24, 30]))))
    (curve,) = chart.series
    assert curve.xs == (1.0, 2.0, 3.0)
    assert curve.middle == pytest.approx((11, 22, 30))
    assert curve.low == pytest.approx((11 - 2**0.5, 22 - 8**0.5, 30))
    assert curve.high == pytest.approx((11 + 2**0.5, 22 + 8**0.5, 30))
    assert chart.title == "A table"


def test_runs_that_are_not_finished_or_diverged_bend_no_curve() -> None:
    (chart,) = charts_of(result(group("a", run(0, [10, 20, 30]), run(1, [90, 90]), run(2, [90], diverged=True))))
    assert chart.series[0].middle == pytest.approx((10, 20, 30))
    assert chart.series[0].label == "a (2 of 3 runs; 1 diverged (in epoch 2))"
    assert chart.title == "A table (not a reproduction: 2 of 3 runs finished)"


def test_a_picture_for_each_panel_that_has_something_to_show() -> None:
    shown = result(group("a", run(0, [1, 2, 3]), panel="VGG-16 0.5x"), group("b", run(0, [1, 2, 3]), panel=""), group("c", run(0, []), panel="empty"))
    assert [(chart.name, chart.title.split(" (")[0]) for chart in charts_of(shown)] == [
        ("accuracy-vgg-16-0-5x", "VGG-16 0.5x. A table, ".removesuffix(", ")),
        ("accuracy", "A table"),
    ]


def test_by_rate_a_curve_joins_its_rows_in_the_order_of_rates() -> None:
    rows = (
        group("b", run(0, [1, 40, 3]), rate=1.0, curve="x", printed={"accuracy": PrintedFigure("39")}),
        group("a", run(0, [1, 2, 30]), rate=0.01, curve="x", printed={"accuracy": PrintedFigure("31.5", "0.1")}),
        group("c", run(0, [], diverged=True), rate=10.0, curve="x", printed={"accuracy": PrintedFigure("1.00")}),
    )
    (chart,) = charts_of(result(*rows, picture="rates"))
    (curve,) = chart.series
    assert (curve.xs, curve.middle) == ((0.01, 1.0), (30, 40))
    assert curve.beside == ((0.01, 31.5), (1.0, 39.0), (10.0, 1.0))
    assert curve.lost == (10.0,)


def series(number: int, beside: bool = False) -> Series:
    points = ((1.0, 5.0), (2.0, 6.0), (3.0, 7.0))
    xs, middle = tuple(x for x, _ in points), tuple(y + number for _, y in points)
    return Series(f"curve {number}", xs, middle, tuple(y - 1 for y in middle), tuple(y + 1 for y in middle), beside=points if beside else ())


def test_everything_is_inside_the_sheet_and_bands_are_below_lines() -> None:
    sheet = sheet_of(Chart("n", "A title", "epoch", "test accuracy, %", tuple(series(number) for number in range(10))))
    points = [point for shape in sheet.shapes if isinstance(shape, Line | Area) for point in shape.points]
    assert all(0 <= x <= sheet.width and 0 <= y <= sheet.height for x, y in points)
    kinds = [type(shape) for shape in sheet.shapes if isinstance(shape, Area) or (isinstance(shape, Line) and shape.width == 2)]
    assert kinds == [Area] * 10 + [Line] * 10
    looks = {(shape.colour, shape.dashed) for shape in sheet.shapes if isinstance(shape, Line) and shape.width == 2}
    assert len(looks) == 10


def test_higher_accuracy_is_higher_up_and_later_epochs_further_right() -> None:
    sheet = sheet_of(Chart("n", "A title", "epoch", "y", (series(0),)))
    (line,) = [shape for shape in sheet.shapes if isinstance(shape, Line) and shape.width == 2]
    assert [x for x, _ in line.points] == sorted(x for x, _ in line.points)
    assert [y for _, y in line.points] == sorted((y for _, y in line.points), reverse=True)


def test_rates_are_a_logarithm_apart() -> None:
    by_rate = dataclasses.replace(series(0), xs=(0.01, 0.1, 1.0))
    sheet = sheet_of(Chart("n", "t", "learning rate", "y", (by_rate,), by_rate=True))
    left, middle, right = (shape.place[0] for shape in sheet.shapes if isinstance(shape, Dot))
    assert middle - left == pytest.approx(right - middle, abs=0.02)
    assert {"0.01", "0.1", "1"} <= {shape.text for shape in sheet.shapes if isinstance(shape, Words)}


def test_a_long_title_is_written_whole_on_several_lines() -> None:
    title = "A table (not a reproduction: " + "; ".join(f"deviation number {number} of them" for number in range(12)) + ")"
    sheet = sheet_of(Chart("n", title, "epoch", "y", (series(0),)))
    words = " ".join(shape.text for shape in sheet.shapes if isinstance(shape, Words))
    assert title in words


def test_a_single_epoch_can_be_drawn() -> None:
    (chart,) = charts_of(result(group("a", run(0, [10, 11, 12]), run(1, [10, 12, 12]))))
    one = Series("a", (1.0,), (5.0,), (None,), (None,))
    sheet = sheet_of(dataclasses.replace(chart, series=(one,)))
    assert any(isinstance(shape, Dot) for shape in sheet.shapes)
