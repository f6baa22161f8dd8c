"""The derived budget: errors, factor, floor, and which changes of the first class are ties."""

import math

import ml_dtypes
import numpy as np
import pytest

from deploy.compare import budget as budget_module
from deploy.compare.budget import Budget, Budgets, ErrorMeter, Errors, OutputErrors, TopOneMeter, budget, budgets, ulp
from deploy.runners.runner import Precision


def errors(reference: object, outputs: object, dtype: object = np.float32) -> Errors:
    meter = ErrorMeter()
    meter.update({"y": np.array(reference, np.float64)}, {"y": np.array(outputs, dtype)})  # type: ignore[call-overload]
    return meter.result


def test_errors_over_batches_and_outputs() -> None:
    meter = ErrorMeter()
    meter.update({"x": np.zeros(2), "y": np.array([-8.0])}, {"y": np.array([-8.0]), "x": np.array([3.0, 0.0])})
    meter.update({"x": np.zeros(1), "y": np.zeros(4)}, {"x": np.array([-4.0]), "y": np.zeros(4)})
    found = meter.result
    assert (found.max, found.num_values, found.largest_output) == (4.0, 8, 8.0)
    assert found.rms == math.sqrt((9 + 16) / 8)
    assert found.valid


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int64])
def test_errors_in_any_dtype(dtype: object) -> None:
    assert errors([1.5], [2], dtype).max == 0.5


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        ({}, "missing output"),
        ({"z": np.zeros((2, 3))}, "other names"),
        ({"y": np.zeros((1, 3))}, "shape"),
        ({"y": np.full((2, 3), "a")}, "unsupported dtype"),
    ],
)
def test_what_cannot_be_paired_is_never_inside(outputs: dict[str, np.ndarray], kind: str) -> None:
    meter = ErrorMeter()
    meter.update({"y": np.zeros((2, 3))}, outputs)
    assert [failure.kind for failure in meter.result.failures] == [kind]
    assert not Budget(1.0, 1.0).covers(meter.result)


def test_nothing_measured_is_never_inside() -> None:
    assert not Budget(1.0, 1.0).covers(ErrorMeter().result)
    assert not Budget(1.0, 1.0).covers(errors([math.nan], [math.nan]))


@pytest.mark.parametrize(("reference", "value"), [(1.0, math.nan), (math.nan, 1.0), (math.inf, -math.inf)])
def test_nonfinite_on_one_side_is_never_inside(reference: float, value: float) -> None:
    found = errors([0.0, reference], [0.0, value])
    assert (found.nonfinite_apart, found.num_values) == (1, 1)
    assert not Budget(1.0, 1.0).covers(found)
    assert budget(found, "float32", "float32") is None


@pytest.mark.parametrize(
    ("reference", "value", "alike"), [(math.inf, math.inf, 1), (-math.inf, math.inf, 0), (math.nan, math.nan, 0), (1e300, math.inf, 0)]
)
def test_infinity_where_float64_has_it_is_told_from_others(reference: float, value: float, alike: int) -> None:
    found = errors([0.0, reference], [0.0, value])
    assert (found.nonfinite, found.infinite_alike) == (1, alike)


def test_infinity_and_nan_in_the_same_place_are_no_error() -> None:
    assert errors([0.0, math.inf, math.nan], [0.0, math.inf, math.nan]).valid


def test_less_than_half_of_the_digits_in_common_with_other_code_is_no_budget() -> None:
    apart, near = errors([1.0], [1.0 + 2**-11]), errors([1.0], [1.0 + 2**-13])
    assert budget(apart, "float32", "float32", uncertain=True) is None
    assert budget(apart, "float32", "float32") is not None
    assert budget(near, "float32", "float32", uncertain=True) == Budget(4 * near.max, 4 * near.rms)
    assert budget(apart, "float16", "float16", uncertain=True) is not None


def test_four_times_the_training_error() -> None:
    training = errors([1.0, 1.0], [1.0 + 2**-10, 1.0])
    found = budget(training, "float32", "float32")
    assert found == Budget(4 * training.max, 4 * training.rms)
    inside, outside = errors([0.0], [2**-8]), errors([0.0], [np.nextafter(np.float32(2**-8), 1)])
    assert found is not None
    assert found.max == 2**-8
    assert Budget(found.max, 1.0).covers(inside)
    assert not Budget(found.max, 1.0).covers(outside)
    assert not Budget(1.0, inside.rms / 2).covers(inside)


@pytest.mark.parametrize(("precision", "factor"), [("tf32", 2**13), ("float16", 2**13), ("bfloat16", 2**16)])
def test_scaled_by_the_precision_that_was_asked_for(precision: Precision, factor: int) -> None:
    training = errors([1.0], [1.0 + 2**-10])
    assert budget(training, "float32", precision) == Budget(4 * factor * 2**-10, 4 * factor * 2**-10)


def test_floor_of_one_ulp_of_the_largest_output() -> None:
    exact = errors([3.0, -5.0, 1.0], [3.0, -5.0, 1.0])
    for precision, expected in (("float32", 2**-21), ("float16", 2**-8), ("bfloat16", 2**-5)):
        assert budget(exact, "float32", precision) == Budget(expected, expected)  # type: ignore[arg-type]
    assert budget(errors([0.0], [0.0]), "float32", "float32") == Budget(0.0, 0.0)


@pytest.mark.parametrize("value", [1.0, 1.5, 2.0, 0.75, 3e-30, 7e30, -5.0])
def test_ulp_is_that_of_the_format(value: float) -> None:
    assert ulp(value, "float32") == abs(float(np.spacing(np.float32(value))))
    assert ulp(value, "float64") == abs(float(np.spacing(value)))


class TestSeveralOutputs:
    def measured(self, wrong: float, ids: object = (10**9, 7)) -> OutputErrors:
        meter = ErrorMeter()
        whole = {"ids": np.array([10**9, 7]), "boxes": np.array([900.0, 3.0]), "scores": np.array([0.5, 0.25])}
        meter.update(whole, {"ids": np.array(ids), "boxes": whole["boxes"] + 2**-16, "scores": whole["scores"] + wrong})
        return meter.measured

    def test_a_large_output_does_not_excuse_a_small_one(self) -> None:
        allowed = budgets(self.measured(2**-26), "float32", "float32")
        assert allowed.outputs["boxes"] == Budget(2**-14, 2**-14)
        assert allowed.outputs["scores"] == Budget(2**-24, 2**-24)
        assert allowed.covers(self.measured(2**-24))
        assert not allowed.covers(self.measured(2**-20))
        assert allowed.tightest(self.measured(2**-20)) == "scores"
        assert allowed.tightest(self.measured(2**-26)) == "boxes"

    def test_whole_numbers_are_equal_or_not(self) -> None:
        allowed = budgets(self.measured(0.0), "float32", "bfloat16")
        assert allowed.outputs["ids"] == Budget(0.0, 0.0)
        assert not allowed.covers(self.measured(0.0, ids=(10**9 + 1, 7)))

    def test_whole_numbers_that_a_float64_cannot_tell_apart(self) -> None:
        meter = ErrorMeter()
        meter.update({"y": np.array([2**60, -(2**60)])}, {"y": np.array([2**60 + 1, -(2**60)])})
        assert (meter.result.max, meter.result.exact) == (1.0, True)

    def test_what_one_side_lacks_is_never_inside(self) -> None:
        allowed = budgets(self.measured(0.0), "float32", "float32")
        meter = ErrorMeter()
        meter.update({"ids": np.array([1]), "scores": np.array([1.0])}, {"scores": np.array([1.0])})
        assert not allowed.covers(meter.measured)
        assert not Budgets({}).covers(self.measured(0.0))
        assert not allowed.covers(ErrorMeter().measured)


class TestTopOne:
    reference = np.array([[1.0, 1.25, 0.0], [3.0, 1.0, 0.0]])

    def changes(self, b: object) -> TopOneMeter:
        meter = TopOneMeter()
        for _ in range(2):
            meter.update({"y": self.reference}, {"y": self.reference}, {"y": np.array(b)})
        return meter

    def test_none(self) -> None:
        found = self.changes(self.reference).result({"y": 0.0})
        assert (found.num_changes, found.num_ties, found.changes, found.all_ties) == (0, 0, (), True)

    def test_a_tie_has_a_margin_below_twice_the_error(self) -> None:
        meter = self.changes([[1.25, 1.0, 0.0], [3.0, 1.0, 0.0]])
        tie = meter.result({"y": 0.126})
        assert (tie.num_changes, tie.num_ties, tie.all_ties) == (2, 2, True)
        assert [(c.sample, c.classes, c.margin, c.output) for c in tie.changes] == [
            (2, (1, 0), 0.25, "y"),
            (0, (1, 0), 0.25, "y"),
        ]
        no_tie = meter.result({"y": 0.125})
        assert (no_tie.num_changes, no_tie.num_ties, no_tie.all_ties) == (2, 0, False)

    def test_some(self) -> None:
        found = self.changes([[1.25, 1.0, 0.0], [0.0, 0.0, 3.0]]).result({"y": 0.5})
        assert (found.num_changes, found.num_ties) == (4, 2)
        assert [change.margin for change in found.changes] == [3.0, 3.0, 0.25, 0.25]

    def test_nan_is_no_tie(self) -> None:
        meter = TopOneMeter()
        meter.update({"y": np.array([[math.nan, 1.0]])}, {"y": np.array([[0.0, 1.0]])}, {"y": np.array([[1.0, 0.0]])})
        assert meter.result({"y": 1e9}).num_ties == 0

    def test_each_output_has_its_own_error(self) -> None:
        meter = TopOneMeter()
        scores = {"x": np.array([[1.0, 1.25]]), "y": np.array([[1.0, 1.25]])}
        meter.update(scores, scores, {name: rows[:, ::-1] for name, rows in scores.items()})
        found = meter.result({"x": 1.0, "y": 0.01})
        assert (found.num_changes, found.num_ties, [change.output for change in found.changes]) == (2, 1, ["y", "x"])

    def test_only_outputs_with_classes(self) -> None:
        meter = TopOneMeter()
        for a in (np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2, 2)), np.zeros((2, 3), np.int64)):
            b = a.copy()
            b.flat[-1] = 1
            meter.update({"y": a}, {"y": a}, {"y": b})
        assert meter.result({"y": 0.0}).num_changes == 0

    def test_memory_is_bounded_and_the_verdict_is_not_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget_module, "NUM_CHANGES_KEPT", 3)
        meter = TopOneMeter()
        margins = np.arange(1.0, 11.0)
        reference = np.stack([margins, np.zeros(10)], axis=1)
        meter.update({"y": reference}, {"y": reference}, {"y": reference[:, ::-1]})
        found = meter.result({"y": 4.25}, num_listed=2)
        assert (found.num_changes, found.num_ties) == (10, 8)
        assert [change.margin for change in found.changes] == [10.0, 9.0]
        assert not meter.result({"y": 0.5}).all_ties
