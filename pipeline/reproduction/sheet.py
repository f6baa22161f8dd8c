"""Lines, areas, marks and text on a sheet, as SVG and as PNG.

Takes coordinates in pixels of a 96 dpi screen; knows no data. Needs no display, no system font and
no plotting library. Both forms come from one list of shapes, so they show the same.
"""

import io
import xml.etree.ElementTree as Xml
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, hypot
from typing import Literal

from PIL import Image, ImageColor, ImageDraw, ImageFont

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

_PNG_SCALE, _FINER = 2, 2
"""A PNG has twice the pixels in each direction. It is drawn twice as fine again and reduced, for
smooth edges."""
_PILLOWS_ANCHORS: dict[Anchor, str] = {"start": "ls", "middle": "ms", "end": "rs"}
_DASH, _GAP = 6.0, 4.0


@dataclass(frozen=True)
class Line:
    """A line through points; `dashed` or solid."""

    points: tuple[Point, ...]
    colour: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Area:
    """A filled, translucent polygon."""

    points: tuple[Point, ...]
    colour: str
    opacity: float = 0.18


@dataclass(frozen=True)
class Dot:
    """A small disc."""

    place: Point
    colour: str
    radius: float = 3.0


@dataclass(frozen=True)
class Words:
    """A line of text; the position is on its baseline."""

    place: Point
    text: str
    size: float = 12.0
    anchor: Anchor = "start"
    colour: str = "#17202b"


Shape = Line | Area | Dot | Words


@dataclass(frozen=True)
class Sheet:
    """Shapes on white, the first at the bottom."""

    width: int
    height: int
    title: str
    shapes: tuple[Shape, ...]


def svg(sheet: Sheet) -> bytes:
    """Return the sheet as an SVG file; it contains the title for screen readers."""
    root = Xml.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": f"{sheet.width}",
            "height": f"{sheet.height}",
            "viewBox": f"0 0 {sheet.width} {sheet.height}",
            "role": "img",
            "font-family": "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
        },
    )
    Xml.SubElement(root, "title").text = sheet.title
    Xml.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    for shape in sheet.shapes:
        _add(root, shape)
    Xml.indent(root)
    return Xml.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _add(root: Xml.Element, shape: Shape) -> None:
    match shape:
        case Line():
            dashes = {"stroke-dasharray": f"{_DASH:g} {_GAP:g}"} if shape.dashed else {}
            stroke = {"fill": "none", "stroke": shape.colour, "stroke-width": f"{shape.width:g}", "stroke-linejoin": "round"}
            Xml.SubElement(root, "polyline", {"points": _pairs(shape.points), **stroke, **dashes})
        case Area():
            Xml.SubElement(root, "polygon", {"points": _pairs(shape.points), "fill": shape.colour, "fill-opacity": f"{shape.opacity:g}"})
        case Dot():
            x, y = shape.place
            Xml.SubElement(root, "circle", {"cx": f"{x:g}", "cy": f"{y:g}", "r": f"{shape.radius:g}", "fill": shape.colour})
        case Words():
            x, y = shape.place
            how = {"font-size": f"{shape.size:g}", "text-anchor": shape.anchor, "fill": shape.colour}
            Xml.SubElement(root, "text", {"x": f"{x:g}", "y": f"{y:g}", **how}).text = shape.text


def _pairs(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def png(sheet: Sheet) -> bytes:
    """Return the sheet as a PNG file, in Pillow's own font."""
    scale = _PNG_SCALE * _FINER
    image = Image.new("RGB", (sheet.width * scale, sheet.height * scale), "#ffffff")
    for shape in sheet.shapes:
        _paint(image, shape, scale)
    image = image.resize((sheet.width * _PNG_SCALE, sheet.height * _PNG_SCALE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _paint(image: Image.Image, shape: Shape, scale: int) -> None:
    drawing = ImageDraw.Draw(image)
    match shape:
        case Line():
            for piece in _dashes(shape.points) if shape.dashed else (shape.points,):
                drawing.line(_finer(piece, scale), fill=shape.colour, width=round(shape.width * scale), joint="curve")
        case Area():
            red, green, blue = ImageColor.getrgb(shape.colour)[:3]
            drawing = ImageDraw.Draw(image, "RGBA")  # on an RGB image, this mode blends colours
            drawing.polygon(_finer(shape.points, scale), fill=(red, green, blue, round(255 * shape.opacity)))
        case Dot():
            (x, y), radius = shape.place, shape.radius
            drawing.ellipse(_finer(((x - radius, y - radius), (x + radius, y + radius)), scale), fill=shape.colour)
        case Words():
            place, font = _finer((shape.place,), scale)[0], ImageFont.load_default(shape.size * scale)
            drawing.text(place, shape.text, fill=shape.colour, font=font, anchor=_PILLOWS_ANCHORS[shape.anchor])


def _finer(points: Sequence[Point], scale: int) -> list[Point]:
    return [(x * scale, y * scale) for x, y in points]


def _dashes(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Yield the drawn pieces of a dashed line; the pattern continues around corners, as in SVG."""
    period, done = _DASH + _GAP, 0.0
    for start, end in pairwise(points):
        length = hypot(end[0] - start[0], end[1] - start[1])
        for number in range(int(done // period), ceil((done + length) / period)):
            first, last = max(number * period, done), min(number * period + _DASH, done + length)
            if first < last:
                yield _between(start, end, (first - done) / length), _between(start, end, (last - done) / length)
        done += length


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
