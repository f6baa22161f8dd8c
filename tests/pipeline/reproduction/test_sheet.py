"""One sheet in two forms: the PNG has its colours where the SVG says."""

import io
import xml.etree.ElementTree as Xml

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.reproduction.sheet import Area, Dot, Line, Shape, Sheet, Words, _dashes, png, svg

RED, BLUE = "#ff0000", "#0000ff"
SVG = "{http://www.w3.org/2000/svg}"


def pixels(*shapes: Shape) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png(Sheet(60, 40, "a title", shapes))))
    assert image.size == (120, 80)
    return np.asarray(image)


def at(image: NDArray[np.uint8], x: float, y: float) -> tuple[int, ...]:
    return tuple(int(value) for value in image[round(2 * y), round(2 * x)])


def test_lines_and_dots_are_where_they_should_be() -> None:
    image = pixels(Line(((10, 20), (50, 20)), RED, 4), Dot((30, 20), BLUE, 5))
    assert at(image, 15, 20) == (255, 0, 0)
    assert at(image, 30, 20) == (0, 0, 255)
    assert at(image, 15, 10) == at(image, 55, 20) == (255, 255, 255)


def test_an_area_lets_through_what_is_below() -> None:
    image = pixels(Line(((0, 20), (60, 20)), BLUE, 4), Area(((10, 10), (50, 10), (50, 30), (10, 30)), RED, 0.5))
    red, green, blue = at(image, 30, 20)
    assert blue == pytest.approx(127, abs=2)
    assert red == pytest.approx(128, abs=2)
    assert green == 0
    assert at(image, 30, 13)[1] == pytest.approx(127, abs=2)


def test_words_are_drawn_from_the_end_that_is_said() -> None:
    for anchor, side in (("start", slice(60, None)), ("end", slice(None, 60))):
        image = pixels(Words((30, 25), "####", 12, anchor, RED))  # type: ignore[arg-type]
        assert (image[:, side] < 255).any()
        other = slice(None, 58) if anchor == "start" else slice(62, None)
        assert not (image[:, other] < 255).any()


def test_dashes_run_on_around_corners() -> None:
    """As SVG draws `6 4`: of a length of 25, drawn from 0 to 6, 10 to 16 and 20 to 25."""
    pieces = [(round(a[0] + a[1]), round(b[0] + b[1])) for a, b in _dashes(((0, 0), (13, 0), (13, 12)))]
    assert pieces == [(0, 6), (10, 13), (13, 16), (20, 25)]


def test_a_dashed_line_has_its_gaps_in_the_png_too() -> None:
    image = pixels(Line(((10, 20), (50, 20)), RED, 4, dashed=True))
    assert at(image, 13, 20) == at(image, 23, 20) == (255, 0, 0)
    assert at(image, 18, 20) == at(image, 28, 20) == (255, 255, 255)


def test_points_that_coincide_are_no_endless_line() -> None:
    assert list(_dashes(((5, 5), (5, 5)))) == []


def test_the_svg_holds_each_shape_and_says_its_title() -> None:
    sheet = Sheet(
        60, 40, "a < b & c", (Line(((0, 0), (1, 1)), RED, dashed=True), Area(((0, 0), (1, 0), (1, 1)), RED), Dot((1, 1), RED), Words((1, 1), "<x>"))
    )
    root = Xml.fromstring(svg(sheet))
    assert [each.tag.removeprefix(SVG) for each in root] == ["title", "rect", "polyline", "polygon", "circle", "text"]
    assert root[0].text == "a < b & c"
    assert root[2].get("stroke-dasharray") == "6 4"
    assert root[5].text == "<x>"


def test_a_sheet_has_the_same_bytes_each_time() -> None:
    sheet = Sheet(60, 40, "t", (Line(((0, 0), (30, 30)), RED, dashed=True), Words((1, 20), "± 0.5")))
    assert (svg(sheet), png(sheet)) == (svg(sheet), png(sheet))
