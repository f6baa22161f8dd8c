"""What a value of an exact graph can be: whole multiples of a step between two bounds; and how large the sums of a layer can become.

Numbers in, numbers out: knows neither files nor what is allowed. Integers are held in float64, which is exact up to 2^53.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALLEST_NORMAL, LARGEST = 2.0**-126, 2.0**127
"""Between these no float32 is lost to a runtime that flushes small numbers to zero."""


@dataclass(frozen=True)
class Branch:
    """How far a layer's sum goes before a quantiser clips it, in the quantiser's steps, and where it clips."""

    low: float
    high: float
    clips_at: tuple[float, float] = (-np.inf, np.inf)


@dataclass(frozen=True)
class Bytes:
    """Codes of 8 bits. `scale` and `zero_point` are those they were quantised with; None for the image, which says nothing."""

    signed: bool
    low: int
    high: int
    scale: float | None = None
    zero_point: int | None = None
    result_of: str = ""
    """The join whose rounded result this is."""
    branch: Branch | None = None
    requantised: bool = False
    """Whether they were made of other bytes, with nothing between."""

    @property
    def seen_up_to(self) -> int:
        """The largest code as kernels for unsigned bytes see it; they add 128 to signed ones."""
        return self.high + 128 if self.signed else self.high


@dataclass(frozen=True)
class Floats:
    """Multiples of a unit, per filter where units differ; other operations than layers do not care which is whose."""

    unit: Array
    low: Array
    high: Array
    """In units."""
    odd: NDArray[np.bool_]
    """Whether they are odd multiples, or 0 behind a rectifier."""
    maker: str = ""
    """The layer or join whose sum this is, as long as it is not rounded."""
    factor: float = 1.0
    """What that sum was multiplied by since."""
    result_of: str = ""
    """The join whose rounded result this is."""
    clip: tuple[float, float] = (-np.inf, np.inf)
    """Where it was clipped since; a bound may be off the unit."""
    codes: Bytes | None = None
    """The bytes that it stands for, where it stands for bytes."""
    origin: Bytes | None = None
    """The bytes that it is computed from by nothing but a scale, an offset or a rectifier: a runtime may multiply these in its place."""
    branch: Branch | None = None

    @property
    def rounded(self) -> bool:
        """Whether it is no layer's or join's sum any more."""
        return not self.maker

    @property
    def extent(self) -> float:
        """The largest absolute value, in units."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))


def floats(unit: float, low: float, high: float) -> Floats:
    """A tensor of one unit."""
    return Floats(np.array([unit]), np.array([low], np.float64), np.array([high], np.float64), np.array([False]))


@dataclass(frozen=True)
class Terms:
    """A layer's integers, a row a filter, and what they are multiples of."""

    weights: Array
    bias: Array
    step: Array
    unit: Array

    @cached_property
    def even_weights(self) -> NDArray[np.bool_]:
        if self.weights.dtype == np.int8:
            return np.asarray(np.bitwise_or.reduce(self.weights, axis=1) % 2 == 0)
        return np.asarray(np.all(self.weights % 2 == 0, axis=1))

    @property
    def odd_bias(self) -> NDArray[np.bool_]:
        return np.asarray(self.bias % 2 == 1)

    def bounds(self, low: float, high: float) -> tuple[Array, Array]:
        """Between what the sums of each filter lie."""
        positive, negative = self._sides
        return positive * low - negative * high + self.bias, positive * high - negative * low + self.bias

    def largest_sums(self, low: float, high: float) -> Array:
        """Per filter, over any subset of its terms. Where inputs are never negative, terms of one sign are one side of the filter."""
        positive, negative = self._sides
        one_side = positive + negative if low < 0 else np.maximum(positive, negative)
        return one_side * max(-low, high) + np.abs(self.bias)

    def plain_bounds(self, low: float, high: float) -> Array:
        """What absolute values alone would give."""
        return sum(self._sides) * max(-low, high) + np.abs(self.bias)

    def largest_pairs(self) -> int:
        """The largest sum of two weights of one sign."""
        count = min(2, self.weights.shape[1])
        top = np.partition(self.weights, -count, axis=1)[:, -count:].astype(np.float64)
        bottom = -np.partition(self.weights, count - 1, axis=1)[:, :count].astype(np.float64)
        return int(max(np.maximum(side, 0).sum(1).max() for side in (top, bottom)))

    @property
    def largest_weight(self) -> int:
        return max(int(self.weights.max()), -int(self.weights.min()))

    @property
    def significant_bits(self) -> int:
        """How many bits the widest weight has between its first 1 and its last."""
        if self.weights.dtype == np.int8:
            return 7
        whole = np.abs(self.weights[self.weights != 0])
        return int(np.log2((whole / _lowest_bits(whole)).max())) + 1 if whole.size else 0

    @cached_property
    def _sides(self) -> tuple[Array, Array]:
        """The sums of the positive weights of each filter, and of the absolute values of the negative ones."""
        positive = np.maximum(self.weights, 0).sum(1, dtype=np.float64)
        return positive, positive - self.weights.sum(1, dtype=np.float64)


def terms_of_floats(weights: Array, bias: Array, input_step: float) -> Terms:
    """The integers of weights and biases that are kept as float32 numbers: per filter, the largest unit that all are multiples of."""
    weights, bias = weights.astype(np.float64), bias.astype(np.float64)
    lowest = np.minimum(_lowest_bits(weights * input_step).min(1), _lowest_bits(bias))
    unit = np.where(np.isinf(lowest), input_step, lowest)
    step = unit / input_step
    return Terms(weights / step[:, None], bias / unit, step, unit)


def are_powers_of_two(values: Array) -> bool:
    """Whether all are, and so are positive and finite."""
    return bool(np.all(np.isfinite(values) & (values > 0) & (np.frexp(values)[0] == 0.5)))


def are_normal(values: Array) -> bool:
    """Whether float32 holds all of them in full."""
    return bool(np.all((values >= SMALLEST_NORMAL) & (values <= LARGEST)))


def _lowest_bits(values: Array) -> Array:
    """The largest power of two that each is a multiple of; infinite for 0."""
    mantissa, exponent = np.frexp(values)
    whole = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
    return np.where(values == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 53))
