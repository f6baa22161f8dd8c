"""The comparison on hand-made cases: what must never pass uncompared, and odd corners of floats."""

import math

import ml_dtypes
import numpy as np
import pytest

from deploy.compare.bits import Comparator, Comparison, compare, compare_batches, ulp_distance

FLOATS = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def logits(*values: float, dtype: object = np.float32) -> dict[str, np.ndarray]:
    return {"logits": np.array([values], dtype=dtype)}  # type: ignore[call-overload]


def kinds(comparison: Comparison) -> list[str]:
    return [failure.kind for failure in comparison.failures]


def test_equal_arrays_are_bitwise() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    found = compare({"logits": values}, {"logits": values.copy()})
    assert found.bitwise
    assert (found.num_samples, found.num_values, found.num_batches) == (3, 15, 1)
    assert (found.max_ulp, found.max_abs, found.rms, found.first_difference) == (0, 0.0, 0.0, None)


def test_nothing_compared_is_not_bitwise() -> None:
    assert not Comparison(outputs=(), failures=(), num_batches=1, rms=0.0, first_difference=None).bitwise


class TestSevenWaysToPassWithoutComparing:
    def test_output_missing_on_one_side(self) -> None:
        one = logits(1)
        for a, b, side in (
            ({**one, "extra": one["logits"]}, one, "second"),
            (one, {**one, "extra": one["logits"]}, "first"),
        ):
            found = compare(a, b)
            assert not found.bitwise
            assert kinds(found) == ["missing output"]
            assert found.failures[0].message == f"the {side} side lacks the outputs ['extra']"
            assert found.num_values == 1

    @pytest.mark.parametrize("swap", [False, True])
    def test_fewer_iterations_on_one_side(self, swap: bool) -> None:
        a, b = [logits(1), logits(2)], [logits(1)]
        found = compare_batches(b, a) if swap else compare_batches(a, b)
        assert not found.bitwise
        assert kinds(found) == ["fewer batches"]
        side = "first" if swap else "second"
        assert found.failures[0].message == f"the {side} side ended after 1 batches, the other went on"

    def test_one_side_without_any_iteration(self) -> None:
        assert kinds(compare_batches([logits(1)], [])) == ["fewer batches"]

    def test_different_dtypes(self) -> None:
        found = compare(logits(1), logits(1, dtype=np.float16))
        assert not found.bitwise
        assert kinds(found) == ["dtype"]
        assert found.num_values == 0

    def test_zeros_of_other_sign_are_equal_values_with_other_bits(self) -> None:
        found = compare(logits(0.0), logits(-0.0))
        assert not found.bitwise
        assert (found.max_ulp, found.max_abs, found.different_values, found.different_bits) == (1, 0.0, 0, 1)
        assert found.first_difference is not None
        assert found.first_difference.bits == ("0x00000000", "0x80000000")

    def test_other_names_are_not_matched_by_position(self) -> None:
        found = compare(logits(1), {"scores": logits(1)["logits"]})
        assert not found.bitwise
        assert kinds(found) == ["other names"]
        assert found.num_values == 0

    def test_no_iterations(self) -> None:
        found = compare_batches([], [])
        assert not found.bitwise
        assert kinds(found) == ["no batches"]

    def test_empty_result(self) -> None:
        assert kinds(compare({}, {})) == ["no outputs"]
        assert not compare({}, {}).bitwise
        empty = {"logits": np.zeros((0, 10), np.float32)}
        assert kinds(compare(empty, empty)) == ["no values"]
        assert not compare(empty, empty).bitwise


def test_an_output_that_vanishes_from_both_sides_is_a_failure() -> None:
    both = {"logits": np.ones(1), "extra": np.ones(1)}
    found = compare_batches([both, {"logits": np.ones(1)}], [both, {"logits": np.ones(1)}])
    assert kinds(found) == ["other names"]


def test_a_dtype_that_changes_on_both_sides_is_a_failure() -> None:
    batches = [logits(1), logits(1, dtype=np.float64)]
    assert kinds(compare_batches(batches, batches)) == ["dtype"]


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([object()]), np.array([1j]), np.array([1], np.longdouble)])
def test_a_dtype_without_comparison_is_a_failure(value: np.ndarray) -> None:
    assert kinds(compare({"x": value}, {"x": value})) == ["unsupported dtype"]


@pytest.mark.parametrize("shape", [(1,), (1, 3), (3,), ()])
def test_shapes_that_would_broadcast_do_not(shape: tuple[int, ...]) -> None:
    found = compare({"x": np.ones((2, 3), np.float32)}, {"x": np.ones(shape, np.float32)})
    assert kinds(found) == ["shape"]
    assert found.num_values == 0


def test_same_values_in_another_memory_order_are_bitwise() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for other in (np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2], values[::-1].copy()[::-1]):
        assert compare({"x": values}, {"x": other}).bitwise
    turned = compare({"x": values}, {"x": np.ascontiguousarray(values[::-1])[::-1] + np.float32(1)})
    assert turned.different_bits == 12


def test_foreign_byte_order_is_read_as_values() -> None:
    values = np.array([1.5, -2.0], np.float32)
    assert compare({"x": values}, {"x": values.astype(">f4")}).bitwise


def test_nan_and_infinity_in_the_same_place() -> None:
    found = compare(logits(math.nan, math.inf, -math.inf, 1), logits(math.nan, math.inf, -math.inf, 2))
    (output,) = found.outputs
    assert (output.nonfinite, output.nonfinite_apart, output.different_bits, output.different_values) == (3, 0, 1, 1)
    assert (output.max_abs, output.rms) == (1.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), (math.nan, math.inf), (math.inf, 3e38)])
def test_nan_and_infinity_not_in_the_same_place(a: float, b: float) -> None:
    found = compare(logits(a, 5), logits(b, 5))
    assert not found.bitwise
    assert (found.nonfinite_apart, found.different_values, found.max_abs) == (1, 1, 0.0)
    assert found.max_ulp > 0


def test_nans_with_other_bits_are_the_same_place_but_not_the_same_bits() -> None:
    a = np.array([[0x7FC00000]], np.uint32).view(np.float32)
    b = np.array([[0x7FC00001]], np.uint32).view(np.float32)
    found = compare({"x": a}, {"x": b})
    assert not found.bitwise
    assert (found.nonfinite_apart, found.different_values, found.different_bits, found.max_ulp) == (0, 0, 1, 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_ulp_steps(dtype: np.dtype[np.float32]) -> None:
    smallest = np.array([1], f"u{dtype.itemsize}").view(dtype)
    zero, infinity = np.zeros(1, dtype), np.array([np.inf], dtype)
    largest = np.nextafter(infinity, zero)
    one = np.array([1], dtype)
    above = np.nextafter(one, infinity)
    for a, b, steps in (
        (zero, smallest, 1),
        (-smallest, smallest, 3),
        (-zero, smallest, 2),
        (one, above, 1),
        (largest, infinity, 1),
        (-above, -one, 1),
    ):
        assert int(ulp_distance(a, b)[0]) == int(ulp_distance(b, a)[0]) == steps


def test_float64_distance_does_not_wrap() -> None:
    found = compare({"x": np.array([-np.inf])}, {"x": np.array([np.inf])})
    assert found.max_ulp == 2 * 0x7FF0000000000000 + 1
    found = compare({"x": np.array([-1.7e308])}, {"x": np.array([1.7e308])})
    assert found.max_abs == found.rms == math.inf


@pytest.mark.parametrize(
    ("dtype", "a", "b", "distance"),
    [
        (np.int64, -(2**63), 2**63 - 1, 2**64 - 1),
        (np.uint64, 0, 2**64 - 1, 2**64 - 1),
        (np.int8, -128, 127, 255),
        (np.uint8, 3, 250, 247),
        (np.int32, -1, 0, 1),
        (np.bool_, False, True, 1),
    ],
)
def test_integers_are_as_far_apart_as_their_values(dtype: type, a: int, b: int, distance: int) -> None:
    found = compare({"x": np.array([a], dtype)}, {"x": np.array([b], dtype)})
    assert (found.max_ulp, found.max_abs) == (distance, float(distance))
    assert not found.bitwise


def test_maximum_and_root_mean_square() -> None:
    found = compare(logits(0, 0, 0, 0), logits(3, 0, -4, 0))
    assert (found.max_abs, found.rms) == (4.0, 2.5)


def test_squares_do_not_underflow() -> None:
    found = compare(logits(0, 0, dtype=np.float64), logits(3e-200, 4e-200, dtype=np.float64))
    assert found.rms == pytest.approx(math.sqrt(12.5) * 1e-200, rel=1e-15)
    tiny = compare(logits(0, dtype=np.float64), logits(5e-324, dtype=np.float64))
    assert tiny.rms == tiny.max_abs == 5e-324


def test_first_difference_names_output_place_sample_values_and_bits() -> None:
    comparator = Comparator()
    a = {"first": np.zeros((2, 3), np.float32), "second": np.zeros((2, 2, 2), np.float32)}
    comparator.update(a, a)
    b = {name: value.copy() for name, value in a.items()}
    b["second"][1, 0, 1] = 1.0
    comparator.update(a, b)
    b["first"][0, 0] = 2.0
    comparator.update(a, b)
    found = comparator.result.first_difference
    assert found is not None
    assert (found.output, found.index, found.sample) == ("second", (3, 0, 1), 3)
    assert (found.values, found.bits) == ((0.0, 1.0), ("0x00000000", "0x3f800000"))


def test_a_scalar_output_is_one_value() -> None:
    found = compare({"x": np.array(1.0)}, {"x": np.array(2.0)})
    assert (found.num_samples, found.num_values, found.max_abs) == (1, 1, 1.0)
    assert found.first_difference is not None
    assert found.first_difference.index == ()


def test_figures_over_several_outputs() -> None:
    a: dict[str, np.ndarray] = {"x": np.zeros(3, np.float32), "y": np.zeros((3, 2), np.float64)}
    b: dict[str, np.ndarray] = {"y": np.full((3, 2), 2.0), "x": np.ones(3, np.float32)}
    found = compare(a, b)
    assert (found.num_samples, found.num_values, found.different_bits) == (3, 9, 9)
    assert (found.max_abs, found.rms) == (2.0, math.sqrt((3 * 1 + 6 * 4) / 9))
    assert [output.name for output in found.outputs] == ["x", "y"]


def test_failures_are_kept_once_however_many_batches_repeat_them() -> None:
    comparator = Comparator()
    for _ in range(50):
        comparator.update(logits(1), logits(1, 2))
    assert kinds(comparator.result) == ["shape"]


def test_batches_and_the_whole_agree() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(10, 4)).astype(np.float32)
    b = a + (rng.random((10, 4)) < 0.3) * np.float32(1e-6)
    parts = [slice(0, 3), slice(3, 4), slice(4, 10)]
    whole = compare({"x": a}, {"x": b})
    pieces = compare_batches([{"x": a[part]} for part in parts], [{"x": b[part]} for part in parts])
    assert whole.first_difference == pieces.first_difference
    assert (whole.max_ulp, whole.max_abs) == (pieces.max_ulp, pieces.max_abs)
    assert whole.different_bits == pieces.different_bits > 0
    assert whole.rms == pytest.approx(pieces.rms, rel=1e-14)


def test_distance_refuses_what_would_broadcast() -> None:
    with pytest.raises(ValueError, match="one dtype and shape"):
        ulp_distance(np.ones(3), np.ones(1))
