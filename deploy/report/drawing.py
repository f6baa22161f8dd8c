"""The shapes of the report's charts, and numbers as they are printed.

Axes, curves, boxes, and the picture of the chain. Takes numbers, returns coordinates and text.
Draws nothing itself.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

NOTHING = "\N{EN DASH}"


def number_in(value: object) -> float | None:
    """A finite float, or None. JSON's null and the words for NaN and infinity give None."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if math.isfinite(number) else None


def figure(value: object) -> str:
    """A number, or whatever is in its place, in few characters. Integers are printed in full."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    number = number_in(value)
    if number is None:
        return str(value)
    return short_number(number, 3)


def percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    if share == math.inf:
        return "> 100 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{share:,.2f} times" if share < 10 else f"{share:,.0f} times"


Scale = Literal["linear", "log", "signed log"]
Number = float | None
"""None stands for what cannot be drawn: missing, NaN or infinite."""
Quantiles = Sequence[float]
"""Minimum, lower quartile, median, upper quartile, maximum."""


@dataclass(frozen=True)
class Text:
    """A line of text at a place."""

    x: float
    y: float
    text: str


def short_number(value: float, digits: int) -> str:
    """A number with at most this many significant digits, without zeros in front of an exponent."""
    return f"{value + 0.0:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")


# ---- axes ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Axis:
    """A range of numbers on a range of pixels. "signed log" is linear around 0, up to `unit`."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale = "linear"
    unit: float = 1.0

    def at(self, value: float) -> float:
        """The pixel of a value. A value outside is drawn at the edge."""
        low, high, value = (self._scaled(each) for each in (self.low, self.high, value))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """The pixels and labels of round numbers."""
        values = self._round_values(most)
        return [(self.at(value), short_number(value, 4)) for value in values]

    def _round_values(self, most: int) -> list[float]:
        if self.scale == "linear":
            return _round_steps(self.low, self.high, most)
        if self.scale == "log":
            return _decades(self.low, self.high, most)
        positive = _decades(10 * self.unit, self.high, most // 2) if self.high >= 10 * self.unit else [self.unit]
        return [value for value in (*(-each for each in positive), 0.0, *positive) if self.low <= value <= self.high]

    def _scaled(self, value: float) -> float:
        if self.scale == "log":
            return math.log10(max(value, self.low))
        return math.asinh(value / self.unit) if self.scale == "signed log" else value


def linear_axis(values: Iterable[Number], start: float, end: float) -> Axis:
    """An axis from the smallest to the largest value. A single value gets room on both sides."""
    known = [value for value in values if value is not None] or [0.0]
    low, high = min(known), max(known)
    if low == high:
        room = abs(high) * 0.1 or 1.0
        return Axis(low - room, high + room, start, end)
    room = (high - low) * 0.05
    return Axis(low - room if low else 0.0, high + room if high else 0.0, start, end)


def log_axis(values: Iterable[Number], start: float, end: float, floor: float = 0.0) -> Axis:
    """An axis of whole decades around the positive values above the floor."""
    known = [value for value in values if value is not None and value > floor] or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), start, end, "log")


def signed_log_axis(layers: Iterable[Quantiles], start: float, end: float) -> Axis:
    """An axis around 0, whose linear part covers the middle halves of most layers.

    So a single layer far out leaves the others visible.
    """
    layers = list(layers)
    halves = sorted(max(abs(quantiles[1]), abs(quantiles[3])) for quantiles in layers) or [1.0]
    unit = 10.0 ** math.floor(math.log10(max(halves[len(halves) // 2], 1e-12)))
    high = max((abs(value) for quantiles in layers for value in quantiles), default=unit)
    high = max(high, unit) * 1.2
    return Axis(-high, high, start, end, "signed log", unit)


def _round_steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    # 0.999 and 1e-9 keep rounding errors from choosing a larger step or dropping a tick at an end.
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = round(math.log10(low)), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / most)))]


# ---- curves --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Curve:
    """One line of a chart: its path, and a dot for every point without a neighbour."""

    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart, and the ticks of its axes."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class CurveChart:
    """Curves in one frame."""

    frame: Frame
    curves: tuple[Curve, ...]


def curve_chart(xs: Sequence[float], series: Sequence[Sequence[Number]]) -> CurveChart:
    """Curves over common places. A value that is not a number leaves a gap."""
    left, top, right, bottom = 48.0, 10.0, 350.0, 180.0
    x_axis = linear_axis(xs, left + 6, right - 6)
    if len(set(xs)) > 1:
        x_axis = Axis(min(xs), max(xs), left + 6, right - 6)
    y_axis = linear_axis([value for values in series for value in values], bottom, top)
    x_ticks = tuple(tick for tick in x_axis.ticks() if "." not in tick[1])
    frame = Frame(360, 204, left, top, right, bottom, x_ticks, tuple(y_axis.ticks()))
    return CurveChart(frame, tuple(_curve(xs, values, x_axis, y_axis) for values in series))


def _curve(xs: Sequence[float], values: Sequence[Number], x_axis: Axis, y_axis: Axis) -> Curve:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, value in zip(xs, values, strict=True):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x_axis.at(x), y_axis.at(value)))
    path = "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in piece) for piece in pieces if len(piece) > 1)
    return Curve(path, tuple(piece[0] for piece in pieces if len(piece) == 1))


# ---- boxes per layer -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Slot:
    """The strip of a chart that belongs to one layer."""

    layer: int
    x: float
    width: float


@dataclass(frozen=True)
class BoxChart:
    """Whiskers, boxes and medians of many layers.

    Each kind is one path, so that a hundred layers make a small file.
    """

    frame: Frame
    whiskers: str
    boxes: str
    medians: str
    reference: float | None
    slots: tuple[Slot, ...]


def box_chart(layers: Sequence[Quantiles | None], width: float, reference: float | None, scale: Scale) -> BoxChart:
    """A box for each layer that has quantiles, in order, with the reference inside the frame."""
    left, top, right, bottom = 54.0, 10.0, width - 8, 170.0
    axis = _value_axis([quantiles for quantiles in layers if quantiles], reference, scale, bottom, top)
    step = (right - left) / max(len(layers), 1)
    slots = tuple(Slot(number, round(left + number * step, 2), round(step, 2)) for number in range(len(layers)))
    drawn = [(slot, [axis.at(value) for value in quantiles]) for slot, quantiles in zip(slots, layers, strict=True) if quantiles]
    frame = Frame(width, 194, left, top, right, bottom, _layer_ticks(slots), tuple(axis.ticks()))
    return BoxChart(
        frame=frame,
        whiskers="".join(f"M{_middle(slot)} {ys[0]:g}V{ys[4]:g}" for slot, ys in drawn),
        boxes="".join(_box(slot, ys[1], ys[3]) for slot, ys in drawn),
        medians="".join(_median(slot, ys[2]) for slot, ys in drawn),
        reference=None if reference is None else axis.at(reference),
        slots=slots,
    )


def _value_axis(layers: Sequence[Quantiles], reference: float | None, scale: Scale, start: float, end: float) -> Axis:
    if scale == "signed log":
        return signed_log_axis(layers, start, end)
    values = [value for quantiles in layers for value in quantiles]
    if scale == "log":
        return log_axis(values, start, end, floor=1e-12)
    return linear_axis([*values, *([] if reference is None else [reference])], start, end)


def _layer_ticks(slots: Sequence[Slot]) -> tuple[tuple[float, str], ...]:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, len(slots) + 1) if len(slots) <= 12 * step)
    return tuple((slot.x + slot.width / 2, str(slot.layer + 1)) for slot in slots if slot.layer % every == 0)


def _middle(slot: Slot) -> str:
    return f"{slot.x + slot.width / 2:g}"


def _box(slot: Slot, lower: float, upper: float) -> str:
    half = min(slot.width * 0.35, 9)
    return f"M{slot.x + slot.width / 2 - half:g} {lower:g}h{2 * half:g}V{min(upper, lower - 0.6):g}h{-2 * half:g}z"


def _median(slot: Slot, y: float) -> str:
    half = min(slot.width * 0.45, 11)
    return f"M{slot.x + slot.width / 2 - half:g} {y:g}h{2 * half:g}"


# ---- the chain -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Hop:
    """A link as the picture shows it: its ends and its texts.

    The caption is under the name of the second end. Head and figures are at the line.
    """

    start: str
    end: str
    caption: str
    head: str
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A stage in the tree.

    `hop` is the link that leads to it, None for a root. `parent` is an index in the list.
    """

    name: str
    hop: int | None
    parent: int | None
    depth: int
    row: int


@dataclass(frozen=True)
class StageBox:
    """A stage as it is drawn."""

    x: float
    y: float
    width: float
    height: float
    names: tuple[Text, ...]
    captions: tuple[Text, ...]
    hop: int | None


@dataclass(frozen=True)
class Wire:
    """A link as it is drawn: the line, its arrow, the sign in its middle, the words next to it."""

    hop: int
    path: str
    arrow: str
    sign: tuple[float, float]
    head: Text
    figures: tuple[Text, ...]


@dataclass(frozen=True)
class ChainPicture:
    """A chain, drawn.

    In the wide form, words at wires are centred on their place. In the tall form they begin there.
    """

    form: Literal["wide", "tall"]
    width: float
    height: float
    boxes: tuple[StageBox, ...]
    wires: tuple[Wire, ...]


def stages_of(hops: Sequence[Hop]) -> list[Stage]:
    """The stages as trees, depth first.

    Each link occurs once, even if links form a circle or share an end.
    """
    stages: list[Stage] = []
    left = list(range(len(hops)))
    while left:
        ends = {hops[number].end for number in left}
        first = next((number for number in left if hops[number].start not in ends), left[0])
        row = max((stage.row for stage in stages), default=-1) + 1
        stages.append(Stage(hops[first].start, None, None, 0, row))
        _grow(hops, left, stages)
    return stages


def _grow(hops: Sequence[Hop], left: list[int], stages: list[Stage]) -> None:
    """Attach every remaining link that begins at the last stage, then go on with each new stage."""
    parent = len(stages) - 1
    stage = stages[parent]
    mine = [number for number in left if hops[number].start == stage.name]
    for number in mine:
        left.remove(number)
    for place, number in enumerate(mine):
        row = stage.row if place == 0 else max(each.row for each in stages) + 1
        stages.append(Stage(hops[number].end, number, parent, stage.depth + 1, row))
        _grow(hops, left, stages)


def _forks(stages: Sequence[Stage], parent: int) -> bool:
    return sum(stage.parent == parent for stage in stages) > 1


_BOX_WIDTH, _GAP, _ROW = 142.0, 156.0, 132.0


def wide_chain(hops: Sequence[Hop]) -> ChainPicture:
    """Left to right, with one row for each branch."""
    stages = stages_of(hops)
    boxes = [_stage_box(stage, hops, stage.depth * (_BOX_WIDTH + _GAP) + 1, stage.row * _ROW + 66, _BOX_WIDTH) for stage in stages]
    wires = [
        _wide_wire(boxes[stage.parent], box, stage.hop, hops, _forks(stages, stage.parent))
        for stage, box in zip(stages, boxes, strict=True)
        if stage.parent is not None and stage.hop is not None
    ]
    width = max((box.x + box.width for box in boxes), default=0) + 1
    height = max((stage.row for stage in stages), default=0) * _ROW + _ROW
    return ChainPicture("wide", width, height, tuple(boxes), tuple(reversed(wires)))


def _wide_wire(parent: StageBox, child: StageBox, number: int, hops: Sequence[Hop], forks: bool) -> Wire:
    x0, y0 = parent.x + parent.width, parent.y + parent.height / 2
    x1, y1 = child.x, child.y + child.height / 2
    path = f"M{x0:g} {y0:g}H{x1 - 6:g}" if y0 == y1 else f"M{x0:g} {y0:g}h10V{y1:g}H{x1 - 6:g}"
    middle = (x0 + x1) / 2 + (4 if forks else 0)
    head = Text(middle, y1 - 17, hops[number].head)
    figures = tuple(Text(middle, y1 + 26 + 15 * line, text) for line, text in enumerate(hops[number].figures))
    return Wire(number, path, _arrow(x1, y1, down=False), (middle, y1), head, figures)


def tall_chain(hops: Sequence[Hop], width: float = 358.0) -> ChainPicture:
    """Top to bottom, for narrow screens and paper. Branches are indented."""
    stages = stages_of(hops)
    boxes: list[StageBox] = []
    wires: list[Wire] = []
    y = 1.0
    for stage in stages:
        y += 22 if stage.parent is None and boxes else 0
        x = 1.0
        if stage.parent is not None and stage.hop is not None:
            forks = _forks(stages, stage.parent)
            x, top = boxes[stage.parent].x + (30 if forks else 0), y
            y += 44 + 16 * len(hops[stage.hop].figures)
            child = _stage_box(stage, hops, x, 0, width - x - 1, top=y)
            wires.append(_tall_wire(boxes[stage.parent], child, top, stage.hop, hops, forks))
        boxes.append(_stage_box(stage, hops, x, 0, width - x - 1, top=y))
        y = boxes[-1].y + boxes[-1].height
    return ChainPicture("tall", width, y + 1, tuple(boxes), tuple(reversed(wires)))


def _tall_wire(parent: StageBox, child: StageBox, top: float, number: int, hops: Sequence[Hop], forks: bool) -> Wire:
    x, begin = parent.x + 16, parent.y + parent.height
    middle = child.y + child.height / 2
    path = f"M{x:g} {begin:g}V{middle:g}H{child.x - 6:g}" if forks else f"M{x:g} {begin:g}V{child.y - 6:g}"
    arrow = _arrow(child.x, middle, down=False) if forks else _arrow(x, child.y, down=True)
    figures = tuple(Text(x + 24, top + 42 + 16 * line, text) for line, text in enumerate(hops[number].figures))
    return Wire(number, path, arrow, (x, top + 20), Text(x + 24, top + 25, hops[number].head), figures)


def _stage_box(stage: Stage, hops: Sequence[Hop], x: float, centre: float, width: float, top: float | None = None) -> StageBox:
    letters = int((width - 12) / 8.2)
    names = textwrap.wrap(stage.name, letters, max_lines=3, placeholder="…") or ["(no name)"]
    caption = hops[stage.hop].caption if stage.hop is not None else ""
    captions = textwrap.wrap(caption, int((width - 12) / 6.6), max_lines=3, placeholder="…")
    height = 18 + 17 * len(names) + 14 * len(captions)
    y = centre - height / 2 if top is None else top
    middle = x + width / 2
    return StageBox(
        x,
        y,
        width,
        height,
        tuple(Text(middle, y + 22 + 17 * line, text) for line, text in enumerate(names)),
        tuple(Text(middle, y + 20 + 17 * len(names) + 14 * line, text) for line, text in enumerate(captions)),
        stage.hop,
    )


def _arrow(x: float, y: float, *, down: bool) -> str:
    return f"M{x:g} {y:g}l-5 -9h10z" if down else f"M{x:g} {y:g}l-9 -5v10z"
