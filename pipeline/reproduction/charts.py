"""The pictures of a result: accuracy over epochs, or best accuracy by learning rate.

Takes a result; returns sheets. Curves over epochs have bands; those by learning rate show the
paper's own points. Each title says what keeps a picture from being a reproduction.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploy.report.drawing import Axis, linear_axis, short_number
from pipeline.reproduction.figures import Spread, spread
from pipeline.reproduction.papers import Statistic
from pipeline.reproduction.result import Group, Result
from pipeline.reproduction.sheet import Area, Dot, Line, Point, Shape, Sheet, Words

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#3b3b3b", "#8c564b")
"""Colours that colour-blind readers can tell apart."""
_WIDTH, _HEIGHT = 940, 500
_LEFT, _RIGHT, _BOTTOM = 64.0, 600.0, 440.0
_LETTERS_OF_A_TITLE, _LETTERS_OF_A_LABEL = 125, 40
_MOST_DOTS = 12
_SOFT, _LINE = "#55616f", "#d5dbe3"


@dataclass(frozen=True)
class Series:
    """One curve.

    `low` and `high` bound its band; None if there is none.
    """

    label: str
    xs: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    beside: tuple[tuple[float, float], ...] = ()
    """The paper's own points, dashed."""
    lost: tuple[float, ...] = ()
    """The places at which every run diverged before it had an accuracy."""


@dataclass(frozen=True)
class Chart:
    """Curves in one frame, under one title."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    by_rate: bool = False


def charts_of(result: Result) -> tuple[Chart, ...]:
    """Return one chart for each panel that has something to show."""
    if result.picture == "rates":
        return tuple(chart for chart in (_by_rate(result),) if _shows_anything(chart))
    panels = dict.fromkeys(group.panel for group in result.groups)
    return tuple(chart for panel in panels if _shows_anything(chart := _over_epochs(result, panel)))


def _shows_anything(chart: Chart) -> bool:
    return any(series.xs or series.lost for series in chart.series)


def _over_epochs(result: Result, panel: str) -> Chart:
    groups = [group for group in result.groups if group.panel == panel]
    title = result.title if not panel else f"{panel}. {result.title}"
    name = "-".join(["accuracy", *"".join(letter if letter.isalnum() else " " for letter in panel.lower()).split()])
    return Chart(name, title, "epoch", _y_label("test accuracy, %", result.statistic), tuple(_curve(result, group) for group in groups))


def _y_label(what: str, statistic: Statistic) -> str:
    return f"{what}: {'mean, with a band of ± std' if statistic == 'mean and std' else 'median, with a band of quartiles'}"


def _curve(result: Result, group: Group) -> Series:
    """Return the curve over the finished runs that did not diverge.

    A run that ends early would bend the mean of the others.
    """
    runs = [run for run in group.finished if run.diverged is None]
    by_epoch = zip(*(run.records[: group.epochs] for run in runs), strict=True)
    found = [spread([100 * record["test_accuracy"] for record in records], result.statistic) for records in by_epoch]
    points = [(float(epoch), each) for epoch, each in enumerate(found, start=1) if each is not None]
    return _series(f"{_label(group)} ({group.state})", points)


def _label(group: Group) -> str:
    return ", ".join(cell for cell in group.cells if cell != group.panel)


def _series(label: str, points: Sequence[tuple[float, Spread]]) -> Series:
    return Series(
        label,
        tuple(x for x, _ in points),
        tuple(each.middle for _, each in points),
        tuple(each.low for _, each in points),
        tuple(each.high for _, each in points),
    )


def _by_rate(result: Result) -> Chart:
    curves = dict.fromkeys(group.curve for group in result.groups)
    series = tuple(_points_of_curve(result, [group for group in result.groups if group.curve == curve], curve) for curve in curves)
    return Chart("by-rate", result.title, "learning rate", _y_label("best test accuracy, %", result.statistic), series, by_rate=True)


def _points_of_curve(result: Result, groups: Sequence[Group], curve: str) -> Series:
    groups = sorted(groups, key=lambda group: group.rate)
    found = [(group.rate, each) for group in groups if (each := result.figures(group).best) is not None]
    plain = _series(curve, found)
    beside = tuple((group.rate, float(printed.value)) for group in groups if (printed := group.printed.get("accuracy")))
    lost = tuple(group.rate for group in groups if group.finished and result.figures(group).best is None)
    return Series(plain.label, plain.xs, plain.middle, plain.low, plain.high, beside, lost)


# ---- from a chart to a sheet ---------------------------------------------------------------------


def sheet_of(chart: Chart) -> Sheet:
    """Draw a chart on a sheet."""
    title = textwrap.wrap(chart.title, _LETTERS_OF_A_TITLE)
    top = 34.0 + 18 * len(title)
    x_axis, y_axis = _x_axis(chart), linear_axis(_heights(chart), _BOTTOM, top)
    shapes = [*_title(title), *_frame(chart, x_axis, y_axis, top)]
    for number, series in enumerate(chart.series):  # bands are drawn below all lines
        shapes += _band(series, x_axis, y_axis, _COLOURS[number % len(_COLOURS)])
    for number, series in enumerate(chart.series):
        shapes += _drawn(series, x_axis, y_axis, _COLOURS[number % len(_COLOURS)], dashed=number >= len(_COLOURS))
    return Sheet(_WIDTH, _HEIGHT, chart.title, (*shapes, *_legend(chart, top)))


def _title(lines: Sequence[str]) -> Iterator[Shape]:
    for number, line in enumerate(lines):
        yield Words((16, 26.0 + 18 * number), line, 14)


def _heights(chart: Chart) -> list[float | None]:
    return [
        value for series in chart.series for values in (series.middle, series.low, series.high, [y for _, y in series.beside]) for value in values
    ]


def _x_axis(chart: Chart) -> Axis:
    xs = [x for series in chart.series for x in (*series.xs, *series.lost, *(rate for rate, _ in series.beside))]
    left, right = _LEFT + 10, _RIGHT - 10
    if min(xs) == max(xs):
        return linear_axis(xs, left, right)
    return Axis(min(xs), max(xs), left, right, "log") if chart.by_rate else Axis(min(xs), max(xs), left, right)


def _frame(chart: Chart, x_axis: Axis, y_axis: Axis, top: float) -> Iterator[Shape]:
    for y, label in y_axis.ticks(8):
        yield Line(((_LEFT, y), (_RIGHT, y)), _LINE)
        yield Words((_LEFT - 8, y + 4), label, 12, "end", _SOFT)
    for x, label in _x_ticks(chart, x_axis):
        yield Words((x, _BOTTOM + 20), label, 12, "middle", _SOFT)
    yield Words(((_LEFT + _RIGHT) / 2, _BOTTOM + 44), chart.x_label, 13, "middle")
    yield Words((16, top - 12), chart.y_label, 12, "start", _SOFT)


def _x_ticks(chart: Chart, axis: Axis) -> list[tuple[float, str]]:
    if chart.by_rate:
        rates = {rate for series in chart.series for rate in (*series.xs, *series.lost, *(x for x, _ in series.beside))}
        return [(axis.at(rate), short_number(rate, 3)) for rate in sorted(rates)]
    return [tick for tick in axis.ticks(8) if "." not in tick[1]]


def _band(series: Series, x_axis: Axis, y_axis: Axis, colour: str) -> Iterator[Shape]:
    ends = zip(series.xs, series.low, series.high, strict=True)
    banded = [(x_axis.at(x), y_axis.at(low), y_axis.at(high)) for x, low, high in ends if low is not None and high is not None]
    if len(banded) > 1:
        yield Area((*((x, high) for x, _, high in banded), *((x, low) for x, low, _ in reversed(banded))), colour)


def _drawn(series: Series, x_axis: Axis, y_axis: Axis, colour: str, *, dashed: bool) -> Iterator[Shape]:
    papers = tuple((x_axis.at(x), y_axis.at(y)) for x, y in series.beside)
    yield from _joined(papers, colour, width=1.3, radius=2, dashed=True)
    points = tuple((x_axis.at(x), y_axis.at(y)) for x, y in zip(series.xs, series.middle, strict=True))
    yield from _joined(points, colour, width=2, radius=3, dashed=dashed)
    for x in series.lost:
        yield from _cross((x_axis.at(x), _BOTTOM - 8), colour)


def _joined(points: tuple[Point, ...], colour: str, *, width: float, radius: float, dashed: bool) -> Iterator[Shape]:
    """Return a line, and its points if they are few."""
    if len(points) > 1:
        yield Line(points, colour, width, dashed=dashed)
    if len(points) <= _MOST_DOTS:
        yield from (Dot(point, colour, radius) for point in points)


def _cross(place: Point, colour: str) -> Iterator[Shape]:
    x, y = place
    for slope in (1, -1):
        yield Line(((x - 5, y - 5 * slope), (x + 5, y + 5 * slope)), colour, 2)


def _legend(chart: Chart, top: float) -> Iterator[Shape]:
    y, most = top + 8, max(1, int((_HEIGHT - top - 48) / 16 / max(1, len(chart.series)) - 0.25))
    for number, series in enumerate(chart.series):
        colour, dashed = _COLOURS[number % len(_COLOURS)], number >= len(_COLOURS)
        yield Line(((_RIGHT + 16, y - 4), (_RIGHT + 40, y - 4)), colour, 3, dashed=dashed)
        for line in textwrap.wrap(series.label, _LETTERS_OF_A_LABEL, max_lines=most, placeholder=" ..."):
            yield Words((_RIGHT + 48, y), line, 12)
            y += 16
        y += 4
    for number, note in enumerate(_signs(chart)):
        yield Words((_RIGHT + 16, y + 12 + 16 * number), note, 12, "start", _SOFT)


def _signs(chart: Chart) -> Iterator[str]:
    if any(series.beside for series in chart.series):
        yield "dashed: the paper's figures"
    if any(series.lost for series in chart.series):
        yield "cross: diverged before its first accuracy"
