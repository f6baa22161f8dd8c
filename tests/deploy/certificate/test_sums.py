"""The bounds and the rule of ties against brute force: every subset, every order, every sum."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.certificate.sums import Terms, are_powers_of_two, terms_of_floats

ONE = np.array([1.0])
WEIGHTS = st.lists(st.integers(-127, 127), min_size=1, max_size=5)


def terms(weights: list[int], bias: int) -> Terms:
    return Terms(np.array([weights], np.int8), np.array([float(bias)]), ONE, ONE)


def subset_sums(weights: list[int], bias: int, low: int, high: int) -> list[int]:
    """The sums of all subsets of the terms, for inputs at the ends of the range: the extremes."""
    choices = [{0, weight * low, weight * high} for weight in weights]
    return [sum(chosen) + added for chosen in itertools.product(*choices) for added in (0, bias)]


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(-500, 500), st.integers(-128, 0), st.integers(0, 255))
def test_no_subset_of_the_terms_goes_beyond_the_bound(weights: list[int], bias: int, low: int, high: int) -> None:
    bound = terms(weights, bias).largest_sums(low, high)[0]
    assert max(map(abs, subset_sums(weights, bias, low, high))) <= bound <= terms(weights, bias).plain_bounds(low, high)[0]


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(1, 255))
def test_the_bound_is_reached_where_inputs_are_never_negative(weights: list[int], high: int) -> None:
    assert terms(weights, 0).largest_sums(0, high)[0] == max(map(abs, subset_sums(weights, 0, 0, high)))


def test_a_filter_of_zero_mean_needs_half_of_the_plain_bound() -> None:
    balanced = terms([100, -100, 50, -50], 1)
    assert (balanced.largest_sums(0, 127)[0], balanced.plain_bounds(0, 127)[0]) == (150 * 127 + 1, 300 * 127 + 1)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(-500, 500), st.integers(-128, 0), st.integers(0, 255))
def test_whole_sums_lie_between_the_bounds(weights: list[int], bias: int, low: int, high: int) -> None:
    sums = [sum(w * x for w, x in zip(weights, xs, strict=True)) + bias for xs in itertools.product((low, high), repeat=len(weights))]
    least, largest = terms(weights, bias).bounds(low, high)
    assert (least[0], largest[0]) == (min(sums), max(sums))


@settings(max_examples=100, deadline=None)
@given(WEIGHTS)
def test_the_largest_pair(weights: list[int]) -> None:
    pairs = [a + b for a, b in itertools.combinations([*weights, 0], 2)]
    assert terms(weights, 0).largest_pairs() == max(map(abs, pairs))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=6), st.integers(-(2**20), 2**20), st.integers(-30, 30), st.integers(-8, 8))
def test_the_integers_of_float_weights(weights: list[int], bias: int, exponent: int, input_exponent: int) -> None:
    step, input_step = 2.0**exponent, 2.0**input_exponent
    found = terms_of_floats(np.array([weights], np.float32) * np.float32(step), np.array([bias], np.float32) * np.float32(step), input_step)
    assert are_powers_of_two(found.unit)
    assert np.array_equal(found.weights, np.round(found.weights))
    assert np.array_equal(found.weights[0] * found.step[0], np.array(weights) * step)
    assert found.bias[0] * found.unit[0] == bias * step
    if any(weights) or bias:
        odd_somewhere = np.any(found.weights % 2 == 1) or found.bias[0] % 2 == 1
        assert odd_somewhere, "a larger unit would do"


@pytest.mark.parametrize("ratio", [Fraction(1, 4), Fraction(1, 2), *map(Fraction, (1, 2, 4, 8, 64))])
@pytest.mark.parametrize("odd", [True, False])
def test_ties_occur_exactly_where_the_rule_says(ratio: Fraction, odd: bool) -> None:
    """Every sum of n units, rounded to a step of `ratio` units."""
    sums = range(-999, 1000, 2) if odd else range(-999, 1000)
    happens = any((Fraction(n) / ratio) % 1 == Fraction(1, 2) for n in sums)
    assert happens == (ratio == 2 if odd else ratio > 1)
