"""What a human allows: counted value by value, never NaN, and both bounds if both are stated."""

import numpy as np
import pytest

from deploy.compare.tolerance import Tolerance, ToleranceMeter
from export.errors import UsageError

ONE = np.float32(1)
NEXT = np.nextafter(ONE, np.float32(2))


def beyond(tolerance: Tolerance, a: list[float], b: list[float]) -> tuple[int, object]:
    meter = ToleranceMeter(tolerance)
    meter.update({"y": np.array(a, np.float32)}, {"y": np.array(b, np.float32)})
    return meter.result.count, meter.result.first


@pytest.mark.parametrize(
    ("tolerance", "a", "b", "count"),
    [
        (Tolerance(max_ulp=1), [1.0], [NEXT], 0),
        (Tolerance(max_ulp=0), [1.0], [NEXT], 1),
        (Tolerance(max_ulp=0), [0.0], [-0.0], 1),
        (Tolerance(atol=0.5), [1.0, 1.0], [1.5, 1.51], 1),
        (Tolerance(rtol=0.5), [2.0, -2.0, 2.0], [3.0, -3.0, 3.01], 1),
        (Tolerance(atol=0.5, rtol=0.5), [2.0, 2.0], [3.5, 3.6], 1),
        (Tolerance(atol=10.0, max_ulp=1), [1.0, 1.0], [1.1, NEXT], 1),
        (Tolerance(atol=1e9), [np.nan, 1.0], [np.nan, np.nan], 2),
        (Tolerance(atol=1.0), [np.inf, np.inf, np.inf], [np.inf, -np.inf, 3.0], 2),
        (Tolerance(atol=1.0, rtol=1.0), [np.inf, np.inf, np.inf, 3.0], [np.inf, -np.inf, 3.0, np.inf], 3),
        (Tolerance(max_ulp=2**33), [np.inf, np.inf, np.inf, 3.0], [np.inf, -np.inf, 3.0, np.inf], 3),
        (Tolerance(max_ulp=2**33, rtol=1.0), [np.nan, 1.0, np.nan], [np.nan, np.nan, np.inf], 3),
    ],
)
def test_values_beyond(tolerance: Tolerance, a: list[float], b: list[float], count: int) -> None:
    assert beyond(tolerance, a, b)[0] == count


@pytest.mark.parametrize(("atol", "count"), [(0.0, 2), (1.0, 1), (2.0, 0)])
def test_whole_numbers_that_no_float_holds(atol: float, count: int) -> None:
    meter = ToleranceMeter(Tolerance(atol=atol))
    meter.update({"y": np.array([2**53, -(2**62), 7])}, {"y": np.array([2**53 + 1, -(2**62) + 2, 7])})
    assert meter.result.count == count


def test_the_first_place_is_counted_over_batches() -> None:
    meter = ToleranceMeter(Tolerance(max_ulp=0))
    for wrong in (False, True):
        meter.update({"y": np.zeros((4, 2))}, {"y": np.array([[0, 0], [0, wrong], [0, 0], [wrong, 0]], float)})
    assert (meter.result.count, meter.result.first) == (2, ("y", (5, 1)))


def test_what_cannot_be_paired_is_left_to_the_comparison() -> None:
    meter = ToleranceMeter(Tolerance(max_ulp=0))
    meter.update({"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros(3)}, {"a": np.ones(2), "b": np.ones(3, np.float32)})
    assert meter.result.count == 0


@pytest.mark.parametrize("stated", [{}, {"max_ulp": -1}, {"atol": -1.0}, {"rtol": float("inf")}])
def test_a_tolerance_that_says_nothing(stated: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a tolerance needs --max-ulp, --atol or --rtol, each 0 or more"):
        Tolerance(**stated)  # type: ignore[arg-type]


def test_who_chose_it_is_said() -> None:
    assert str(Tolerance(max_ulp=3, rtol=0.1)) == "3 ulp and atol 0, rtol 0.1, chosen by a human"
