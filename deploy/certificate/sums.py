"""What values an exact graph can have and how large a layer's sums can be, as integers and bounds.

Numbers in, numbers and rows of the certificate out. Integers are held in float64, which is exact
up to 2^53. Knows no graph.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deploy.certificate.certificate import EXACT_BELOW, INT16_PAIRS, TF32_BITS, LayerRow, Operation
from deploy.certificate.nodes import ANOTHER_FORM, ANOTHER_STEP, FEWER_BITS, RefusedError

Array = NDArray[Any]
SMALLEST_NORMAL, LARGEST = 2.0**-126, 2.0**127
"""Between these, no float32 is lost to a runtime that flushes small numbers to zero."""


@dataclass(frozen=True)
class Branch:
    """How far a layer's sum goes before a quantiser clips it, and where it is clipped.

    Both are in the quantiser's steps.
    """

    low: float
    high: float
    clips_at: tuple[float, float] = (-np.inf, np.inf)


@dataclass(frozen=True)
class Bytes:
    """Codes of 8 bits.

    `scale` and `zero_point` are those that they were quantised with. They are None for the image,
    which states neither.
    """

    signed: bool
    low: int
    high: int
    scale: float | None = None
    zero_point: int | None = None
    result_of: str = ""
    """The join whose rounded result this is."""
    branch: Branch | None = None
    requantised: bool = False
    """Whether they were made from other bytes, with nothing in between."""

    @property
    def seen_up_to(self) -> int:
        """The largest code as kernels for unsigned bytes see it. They add 128 to signed codes."""
        return self.high + 128 if self.signed else self.high


@dataclass(frozen=True)
class Floats:
    """Multiples of a unit.

    Units may differ between filters. Only layers care about which unit belongs to which filter.
    """

    unit: Array
    low: Array
    high: Array
    """Counted in units."""
    odd: NDArray[np.bool_]
    """Whether they are odd multiples, or 0 behind a rectifier."""
    maker: str = ""
    """The layer or join whose sum this is, while it is not rounded."""
    factor: float = 1.0
    """What that sum has been multiplied by since."""
    result_of: str = ""
    """The join whose rounded result this is."""
    clip: tuple[float, float] = (-np.inf, np.inf)
    """Where it has been clipped since. A bound need not be a multiple of the unit."""
    codes: Bytes | None = None
    """The bytes that it stands for, if it stands for bytes."""
    origin: Bytes | None = None
    """The bytes that it comes from by nothing but a scale, an offset or a rectifier.

    A runtime may multiply these bytes in its place.
    """
    branch: Branch | None = None

    @property
    def rounded(self) -> bool:
        """Whether it is no longer the sum of a layer or join."""
        return not self.maker

    @property
    def extent(self) -> float:
        """The largest absolute value, in units."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))


def floats(unit: float, low: float, high: float) -> Floats:
    """A tensor with one unit."""
    return Floats(np.array([unit]), np.array([low], np.float64), np.array([high], np.float64), np.array([False]))


@dataclass(frozen=True)
class Terms:
    """A layer's integers, with a row for each filter, and the units that they are counted in."""

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
        """The lowest and highest sum of each filter."""
        positive, negative = self._sides
        return positive * low - negative * high + self.bias, positive * high - negative * low + self.bias

    def largest_sums(self, low: float, high: float) -> Array:
        """Per filter, the largest absolute value of a sum over any subset of its terms.

        If inputs are never negative, the terms of one sign are one side of the filter.
        """
        positive, negative = self._sides
        one_side = positive + negative if low < 0 else np.maximum(positive, negative)
        return one_side * max(-low, high) + np.abs(self.bias)

    def plain_bounds(self, low: float, high: float) -> Array:
        """The bounds that follow from absolute values alone."""
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
        """How many bits the widest weight has from its first 1 to its last."""
        if self.weights.dtype == np.int8:
            return 7  # no int8 has more, apart from -128, which has one
        whole = np.abs(self.weights[self.weights != 0])
        return int(np.log2((whole / _lowest_bits(whole)).max())) + 1 if whole.size else 0

    @cached_property
    def _sides(self) -> tuple[Array, Array]:
        """Per filter, the sum of positive weights, and the sum of negative ones without sign."""
        positive = np.maximum(self.weights, 0).sum(1, dtype=np.float64)
        return positive, positive - self.weights.sum(1, dtype=np.float64)


def terms_of_floats(weights: Array, bias: Array, input_step: float) -> Terms:
    """The integers of weights and biases that are stored as float32 numbers.

    Per filter, the unit is the largest that all of them are multiples of.
    """
    weights, bias = weights.astype(np.float64), bias.astype(np.float64)
    lowest = np.minimum(_lowest_bits(weights * input_step).min(1), _lowest_bits(bias))
    unit = np.where(np.isinf(lowest), input_step, lowest)
    step = unit / input_step
    return Terms(weights / step[:, None], bias / unit, step, unit)


def are_powers_of_two(values: Array) -> bool:
    """Whether all values are powers of two, and so positive and finite."""
    return bool(np.all(np.isfinite(values) & (values > 0) & (np.frexp(values)[0] == 0.5)))


def are_normal(values: Array) -> bool:
    """Whether float32 holds all values in full."""
    return bool(np.all((values >= SMALLEST_NORMAL) & (values <= LARGEST)))


def _lowest_bits(values: Array) -> Array:
    """The largest power of two that each value is a multiple of. Infinite for 0."""
    mantissa, exponent = np.frexp(values)
    whole = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
    # `whole & -whole` is the lowest bit that is set.
    return np.where(values == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 53))


LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class StoredIntegers:
    """Integers, and the step of each filter."""

    integers: Array
    steps: Array

    @property
    def numbers(self) -> Array:
        return self.integers.astype(np.float64) * self.steps.reshape(-1, *[1] * (self.integers.ndim - 1))


Parameter = StoredIntegers | Array | None


def terms_of(x: Floats, weights: Parameter, bias: Parameter) -> Terms:
    """A layer's integers, in whichever way the file stores them."""
    _require_shapes(weights, bias)
    if isinstance(weights, StoredIntegers):
        return _terms_of_integers(float(x.unit[0]), weights, bias)
    if weights is None or weights.dtype != np.float32:
        raise RefusedError("has weights that are neither int8 with steps nor float32", ANOTHER_FORM)
    if bias is None:
        bias = np.zeros(len(weights), np.float32)
    numbers = bias.numbers if isinstance(bias, StoredIntegers) else bias
    if not np.isfinite(weights).all() or not np.isfinite(numbers).all():
        raise RefusedError("has a weight or bias that is not finite", "train it again")
    return terms_of_floats(weights.reshape(len(weights), -1), numbers, float(x.unit[0]))


def _require_shapes(weights: Parameter, bias: Parameter) -> None:
    weight_shape, bias_shape = (None if each is None else shape_of(each) for each in (weights, bias))
    if weight_shape is not None and (len(weight_shape) < 2 or 0 in weight_shape):
        raise RefusedError(f"has weights of the shape {weight_shape}", ANOTHER_FORM)
    if weight_shape is not None and bias_shape not in (None, weight_shape[:1]):
        raise RefusedError(f"has a bias of the shape {bias_shape}, expected {weight_shape[:1]}", ANOTHER_FORM)


def shape_of(parameter: Parameter) -> tuple[int, ...]:
    assert parameter is not None
    return (parameter.integers if isinstance(parameter, StoredIntegers) else parameter).shape


def _terms_of_integers(input_step: float, weights: StoredIntegers, bias: Parameter) -> Terms:
    if weights.integers.dtype != np.int8:
        raise RefusedError(f"has weights in {weights.integers.dtype}, expected int8", ANOTHER_FORM)
    unit = weights.steps * input_step
    integers = weights.integers.reshape(len(unit), -1)
    return Terms(integers, _integer_bias(bias, unit), weights.steps, unit)


def _integer_bias(bias: Parameter, unit: Array) -> Array:
    """The bias in units. Runtimes round what is not a multiple of them, each in its own way."""
    if bias is None:
        return np.zeros(len(unit))
    if isinstance(bias, StoredIntegers):
        if bias.integers.dtype != np.int32 or not np.array_equal(bias.steps, unit):
            raise RefusedError("has a bias whose step is not input step times weight step, in int32", "export it again on the exact grid")
        return bias.integers.astype(np.float64)
    integers = bias.astype(np.float64) / unit
    if not np.array_equal(integers, np.round(integers)) or not np.isfinite(integers).all():
        raise RefusedError("has a bias that is not a multiple of input step times weight step", "export it again on the exact grid")
    return integers


def layer_sum(name: str, x: Floats, terms: Terms) -> Floats:
    """The values that the layer gives."""
    low, high = terms.bounds(*_range_of(x))
    return Floats(terms.unit, low, high, terms.even_weights & terms.odd_bias, maker=name)


def layer_row(name: str, operation: str, x: Floats, terms: Terms) -> tuple[LayerRow, list[RefusedError]]:
    """The layer's row, and everything that is wrong with it."""
    low, high = _range_of(x)
    row = LayerRow(
        name=name,
        operation=cast(Operation, operation),
        input_step=float(x.unit[0]),
        input_low=int(x.low[0]),
        input_high=int(x.high[0]),
        weight_step_min=float(terms.step.min()),
        weight_step_max=float(terms.step.max()),
        largest_weight=terms.largest_weight,
        largest_sum=int(terms.largest_sums(low, high).max()),
        plain_bound=int(terms.plain_bounds(low, high).max()),
        accumulator_bits=_accumulator_bits(x, terms),
        int16_pairs_safe=_int16_pairs_safe(x, terms),
        tf32_safe=x.extent <= 2**TF32_BITS and terms.significant_bits <= TF32_BITS,
        output_step=None,
        ties=None,
    )
    return row, _faults(row, x, terms)


def pooled_row(name: str, operation: str, x: Floats, count: int) -> LayerRow:
    """A sum over this many values, as a row.

    If channels have different units, the one with the largest sums stands for all.
    """
    widest = int(np.maximum(np.abs(x.low), np.abs(x.high)).argmax())
    largest = int(x.extent) * count
    return LayerRow(
        name=name,
        operation=cast(Operation, operation),
        input_step=float(x.unit[widest]),
        input_low=int(x.low[widest]),
        input_high=int(x.high[widest]),
        weight_step_min=None,
        weight_step_max=None,
        largest_weight=None,
        largest_sum=largest,
        plain_bound=largest,
        accumulator_bits=largest.bit_length() + 1,
        int16_pairs_safe=None,
        tf32_safe=True,
        output_step=None,
        ties=None,
    )


def _range_of(x: Floats) -> tuple[float, float]:
    """The range of what a layer reads.

    It always includes 0, because terms are left out at borders and in partial sums.
    """
    return min(0.0, float(x.low[0])), max(0.0, float(x.high[0]))


def _accumulator_bits(x: Floats, terms: Terms) -> int:
    """The bits of an accumulator.

    Kernels for unsigned bytes add up codes and subtract the zero point's share at the end.
    """
    low, high = _range_of(x)
    if x.codes is None or (x.codes.zero_point == 0 and not x.codes.signed):
        return int(terms.largest_sums(low, high).max()).bit_length() + 1
    return int(terms.plain_bounds(-x.codes.seen_up_to, high).max()).bit_length() + 1


def _int16_pairs_safe(x: Floats, terms: Terms) -> bool | None:
    if x.origin is None or terms.weights.dtype != np.int8:
        return None
    return x.origin.seen_up_to * terms.largest_pairs() <= INT16_PAIRS


def _faults(row: LayerRow, x: Floats, terms: Terms) -> list[RefusedError]:
    faults = []
    if row.largest_sum >= EXACT_BELOW:
        worst = int(terms.largest_sums(*_range_of(x)).argmax())
        faults.append(RefusedError(f"can have partial sums of {row.largest_sum} in filter {worst}, {EXACT_BELOW} is the limit", FEWER_BITS))
    if row.int16_pairs_safe is False and x.origin is not None and not x.origin.signed:
        pair = f"{x.origin.seen_up_to} times {terms.largest_pairs()}"
        remedy = f"{FEWER_BITS}; a Clip at 127 behind the quantiser leaves room for 8 bits"
        faults.append(RefusedError(f"has pairs of products up to {pair}, which CPUs without VNNI saturate at {INT16_PAIRS}", remedy))
    if terms.weights.dtype == np.int8 and (row.largest_weight or 0) > LARGEST_WEIGHT:
        faults.append(RefusedError(f"has a weight of -{row.largest_weight}, {LARGEST_WEIGHT} is the limit", FEWER_BITS))
    if not are_normal(terms.unit) or not are_normal(terms.unit * max(row.largest_sum, 1)):
        faults.append(RefusedError("has steps so small or so large that float32 loses them", ANOTHER_STEP))
    return faults
