"""Laws of the ULP distance, tested against a definition in exact fractions.

The definition looks at values and never at bits.
"""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.compare.bits import _bit_lengths, compare, ulp_distance

FORMATS = {  # dtype: (digits of precision, smallest and largest exponent)
    np.dtype(np.float16): (11, -14, 15),
    np.dtype(ml_dtypes.bfloat16): (8, -126, 127),
    np.dtype(np.float32): (24, -126, 127),
    np.dtype(np.float64): (53, -1022, 1023),
}
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
bits = st.integers(0, 2**64 - 1)


def of_bits(pattern: int, dtype: np.dtype[np.float64]) -> np.ndarray:
    width = 8 * dtype.itemsize
    return np.array([pattern >> (64 - width)], f"u{dtype.itemsize}").view(dtype)


def count_up_to(value: Fraction, dtype: np.dtype[np.float64]) -> int:
    """How many positive numbers of this format are at most `value`, which is one of them.

    It counts whole octaves, then steps.
    """
    digits, lowest, _ = FORMATS[dtype]
    if value < Fraction(2) ** lowest:
        return int(value / Fraction(2) ** (lowest - digits + 1))
    exponent = max(lowest, math.frexp(float(value))[1] - 1)
    whole_octaves = (exponent - lowest) * (1 << (digits - 1))
    step = Fraction(2) ** (exponent - digits + 1)
    up_to_smallest_normal = 1 << (digits - 1)
    return up_to_smallest_normal + whole_octaves + int((value - Fraction(2) ** exponent) / step)


def place(x: np.ndarray, dtype: np.dtype[np.float64]) -> int:
    """The position of x, with +0.0 at 0 and -0.0 at -1. Infinity follows the largest number."""
    value = float(x[0])
    digits, _, highest = FORMATS[dtype]
    largest = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** highest
    size = count_up_to(largest, dtype) + 1 if math.isinf(value) else count_up_to(Fraction(abs(value)), dtype)
    return -size - 1 if math.copysign(1, value) < 0 else size


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(ulp_distance(a, b)[0])


@every_format
@settings(max_examples=120, deadline=None)
@given(a=bits, b=bits)
def test_distance_is_the_exact_count(dtype: np.dtype[np.float64], a: int, b: int) -> None:
    x, y = of_bits(a, dtype), of_bits(b, dtype)
    if not (np.isnan(x[0]) or np.isnan(y[0])):
        assert distance(x, y) == abs(place(x, dtype) - place(y, dtype))


@every_format
@settings(max_examples=80, deadline=None)
@given(a=st.integers(-5, 5), b=st.integers(-5, 5), edge=st.sampled_from(["zero", "normal", "infinity"]))
def test_distance_across_zero_subnormals_and_infinity(dtype: np.dtype[np.float64], a: int, b: int, edge: str) -> None:
    digits, _, _ = FORMATS[dtype]
    unsigned = np.dtype(f"u{dtype.itemsize}")
    infinity = int(np.array([np.inf], dtype).view(unsigned)[0])
    start = {"zero": 0, "normal": (1 << (digits - 1)), "infinity": infinity - 5}[edge]

    def near(offset: int) -> np.ndarray:
        pattern = start + offset if edge != "zero" or offset >= 0 else 2 ** (8 * dtype.itemsize - 1) - offset - 1
        return np.array([pattern], unsigned).view(dtype)

    assert distance(near(a), near(b)) == abs(a - b) == abs(place(near(a), dtype) - place(near(b), dtype))


@every_format
@given(a=bits, b=bits)
def test_symmetric_and_zero_exactly_on_equal_bits(dtype: np.dtype[np.float64], a: int, b: int) -> None:
    x, y = of_bits(a, dtype), of_bits(b, dtype)
    assert distance(x, y) == distance(y, x)
    assert (distance(x, y) == 0) == (x.tobytes() == y.tobytes())
    assert compare({"x": x}, {"x": y}).bitwise == (x.tobytes() == y.tobytes())
    assert distance(x, x) == 0


@every_format
@given(patterns=st.lists(bits, min_size=3, max_size=3))
def test_monotone_and_additive(dtype: np.dtype[np.float64], patterns: list[int]) -> None:
    numbers = [x for x in (of_bits(p, dtype) for p in patterns) if not np.isnan(x[0])]
    if len(numbers) == 3:
        low, middle, high = sorted(numbers, key=lambda x: place(x, dtype))
        assert distance(low, high) == distance(low, middle) + distance(middle, high)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_every_number_of_sixteen_bits_stands_in_order(dtype: np.dtype[np.float64]) -> None:
    infinity = int(np.array([np.inf], dtype).view(np.uint16)[0])
    patterns = np.arange(infinity, dtype=np.uint16)
    finite = np.concatenate([patterns, patterns | 0x8000]).view(dtype)
    values = finite.astype(np.float64)
    order = np.lexsort((~np.signbit(values), values))  # by value, -0.0 before +0.0
    ranked = finite[order]
    assert np.all(ulp_distance(ranked[:-1], ranked[1:]) == 1)
    assert distance(ranked[:1], ranked[-1:]) == ranked.size - 1


@every_format
@given(values=st.lists(st.tuples(bits, bits), min_size=1, max_size=20))
def test_the_histogram_counts_every_value_by_its_distance(dtype: np.dtype[np.float64], values: list[tuple[int, int]]) -> None:
    a, b = (np.concatenate([of_bits(pair[side], dtype) for pair in values]) for side in (0, 1))
    (output,) = compare({"x": a}, {"x": b}).outputs
    expected = [0] * (output.max_ulp.bit_length() + 1)
    for x, y in zip(a, b, strict=True):
        expected[distance(x[None], y[None]).bit_length()] += 1
    assert list(output.ulp_histogram) == expected
    assert sum(output.ulp_histogram) == output.num_values


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_in_bits_are_exact(number: int) -> None:
    assert _bit_lengths(np.array([number], np.uint64)).tolist() == [number.bit_length()]


@given(values=st.lists(st.tuples(bits, bits), min_size=1, max_size=20))
def test_figures_are_symmetric_and_consistent(values: list[tuple[int, int]]) -> None:
    a, b = (np.array([v[side] for v in values], np.uint64).view(np.float64) for side in (0, 1))
    one, other = compare({"x": a}, {"x": b}), compare({"x": b}, {"x": a})
    assert (one.max_ulp, one.max_abs, one.rms, one.different_bits) == (
        other.max_ulp,
        other.max_abs,
        other.rms,
        other.different_bits,
    )
    assert one.rms <= one.max_abs * (1 + 1e-12)
    assert (one.max_ulp == 0) == one.bitwise
