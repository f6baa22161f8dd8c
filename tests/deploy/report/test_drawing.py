"""The geometry of the report's pictures, in pixels."""

import math

from deploy.report.drawing import (
    Axis,
    Hop,
    box_chart,
    curve_chart,
    linear_axis,
    log_axis,
    short_number,
    signed_log_axis,
    stages_of,
    tall_chain,
    wide_chain,
)


def _hop(start: str, end: str) -> Hop:
    return Hop(start, end, "runtime, cpu", "passed", ("0 ulp",))


def test_a_linear_axis_places_values_and_keeps_what_lies_outside_at_the_edge() -> None:
    axis = Axis(0, 10, 100, 200)
    assert [axis.at(value) for value in (0, 5, 10, -3, 99)] == [100, 150, 200, 100, 200]
    assert axis.ticks() == [(100, "0"), (120, "2"), (140, "4"), (160, "6"), (180, "8"), (200, "10")]


def test_an_axis_of_one_value_or_of_none_has_a_width() -> None:
    for values in ([3.0], [3.0, 3.0], [0.0], [], [None]):
        axis = linear_axis(values, 0, 100)
        assert axis.low < axis.high
        assert axis.at(next((value for value in values if value is not None), 0.0)) == 50


def test_a_log_axis_spans_whole_decades_and_leaves_out_what_has_no_logarithm() -> None:
    axis = log_axis([2e-6, 3e-4, 0.0, None], 0, 300)
    assert (axis.low, axis.high) == (1e-6, 1e-3)
    assert axis.ticks() == [(0, "1e-6"), (100, "1e-5"), (200, "0.0001"), (300, "0.001")]
    assert axis.at(0.0) == 0


def test_a_log_axis_of_a_single_power_of_ten_has_a_width() -> None:
    assert log_axis([0.01], 0, 1).high > log_axis([0.01], 0, 1).low


def test_a_signed_log_axis_shows_small_layers_beside_a_large_one() -> None:
    small, large = [-2e-4, -1e-4, 0, 1e-4, 2e-4], [-0.2, -0.1, 0, 0.1, 0.2]
    axis = signed_log_axis([small, small, large], 200, 0)
    assert axis.at(0) == 100
    assert axis.at(-0.2) > 190 > 120 > axis.at(-1e-4) > 101
    labels = [label for _, label in axis.ticks()]
    assert "0" in labels
    assert labels == [label.strip() for label in labels]
    assert labels[0].startswith("-")


def test_a_signed_log_axis_of_nothing_or_of_zeros_has_a_width() -> None:
    assert signed_log_axis([], 0, 1).high > 0
    assert signed_log_axis([[0.0] * 5], 0, 1).high > 0


def test_numbers_are_short() -> None:
    assert [short_number(value, 3) for value in (0.0, -0.0, 1e-7, 1.23456e12, -2.5, 1000.4)] == [
        "0", "0", "1e-7", "1.23e+12", "-2.5", "1e+3",
    ]  # fmt: skip


def test_a_curve_has_a_gap_where_a_number_is_missing_and_a_dot_where_a_point_is_alone() -> None:
    (curve,) = curve_chart([1, 2, 3, 4, 5], [[1.0, 2.0, None, 3.0, None]]).curves
    assert curve.path.count("M") == 1
    assert len(curve.dots) == 1


def test_a_single_epoch_is_a_dot_in_the_middle() -> None:
    chart = curve_chart([1], [[0.5]])
    assert chart.curves[0].path == ""
    assert chart.curves[0].dots == ((199.0, 95.0),)


def test_hundred_layers_are_three_paths_and_a_slot_each() -> None:
    layers = [[0.8, 0.9, 1.0, 1.1, 1.2]] * 109 + [None]
    chart = box_chart(layers, 358, 1.0, "linear")
    assert [path.count("M") for path in (chart.whiskers, chart.boxes, chart.medians)] == [109, 109, 109]
    assert len(chart.slots) == 110
    assert chart.reference == 90
    assert chart.slots[-1].x + chart.slots[-1].width < 351


def test_stages_form_a_tree_with_a_row_for_each_branch() -> None:
    stages = stages_of([_hop("a", "b"), _hop("b", "c"), _hop("b", "d"), _hop("c", "e")])
    assert [(stage.name, stage.hop, stage.parent, stage.depth, stage.row) for stage in stages] == [
        ("a", None, None, 0, 0),
        ("b", 0, 0, 1, 0),
        ("c", 1, 1, 2, 0),
        ("e", 3, 2, 3, 0),
        ("d", 2, 1, 2, 1),
    ]


def test_circles_shared_ends_and_loose_links_are_drawn_once_each() -> None:
    hops = [_hop("a", "b"), _hop("b", "a"), _hop("x", "y"), _hop("z", "y"), _hop("s", "s")]
    stages = stages_of(hops)
    assert sorted(stage.hop for stage in stages if stage.hop is not None) == [0, 1, 2, 3, 4]
    for picture in (wide_chain(hops), tall_chain(hops)):
        assert sorted(wire.hop for wire in picture.wires) == [0, 1, 2, 3, 4]


def test_boxes_of_a_picture_do_not_overlap_and_lie_inside_it() -> None:
    hops = [_hop("a", "b"), *(_hop("b", f"runtime {number} " + "with-a-very-long-name" * 5) for number in range(4))]
    for picture in (wide_chain(hops), tall_chain(hops)):
        for number, box in enumerate(picture.boxes):
            assert box.x >= 0
            assert box.y >= 0
            assert box.x + box.width <= picture.width
            assert box.y + box.height <= picture.height
            for other in picture.boxes[number + 1 :]:
                apart = max(other.x - box.x - box.width, box.x - other.x - other.width)
                assert max(apart, other.y - box.y - box.height, box.y - other.y - other.height) >= 0


def test_nothing_to_draw_is_an_empty_picture() -> None:
    assert wide_chain([]).boxes == ()
    assert tall_chain([]).wires == ()
    assert math.isfinite(box_chart([], 358, None, "log").frame.width)
