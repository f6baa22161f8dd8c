"""The sums of one layer or pool: its integers from what a file stores, and the row of the certificate that they make.

Takes what it reads as a range of steps. Knows no graph.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np

from deploy.verify.certificate import EXACT_BELOW, INT16_PAIRS, TF32_BITS, LayerRow, Operation
from deploy.verify.grid_values import Array, Floats, Terms, are_normal, terms_of_floats
from deploy.verify.refused import ANOTHER_FORM, ANOTHER_STEP, FEWER_BITS, RefusedError

LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class Stored:
    """Integers, and the step of each filter."""

    integers: Array
    steps: Array

    @property
    def numbers(self) -> Array:
        return self.integers.astype(np.float64) * self.steps.reshape(-1, *[1] * (self.integers.ndim - 1))


Parameter = Stored | Array | None


def terms_of(x: Floats, weights: Parameter, bias: Parameter) -> Terms:
    """A layer's integers, whichever way the file stores them."""
    _require_shapes(weights, bias)
    if isinstance(weights, Stored):
        return _terms_of_integers(float(x.unit[0]), weights, bias)
    if weights is None or weights.dtype != np.float32:
        raise RefusedError("has weights that are neither int8 with steps nor float32", ANOTHER_FORM)
    if bias is None:
        bias = np.zeros(len(weights), np.float32)
    numbers = bias.numbers if isinstance(bias, Stored) else bias
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
    return (parameter.integers if isinstance(parameter, Stored) else parameter).shape


def _terms_of_integers(input_step: float, weights: Stored, bias: Parameter) -> Terms:
    if weights.integers.dtype != np.int8:
        raise RefusedError(f"has weights in {weights.integers.dtype}, expected int8", ANOTHER_FORM)
    unit = weights.steps * input_step
    integers = weights.integers.reshape(len(unit), -1)
    return Terms(integers, _integer_bias(bias, unit), weights.steps, unit)


def _integer_bias(bias: Parameter, unit: Array) -> Array:
    """The bias in units. Runtimes round what is not on that grid, each in its own way."""
    if bias is None:
        return np.zeros(len(unit))
    if isinstance(bias, Stored):
        if bias.integers.dtype != np.int32 or not np.array_equal(bias.steps, unit):
            raise RefusedError("has a bias whose step is not input step times weight step, in int32", "export it again on the exact grid")
        return bias.integers.astype(np.float64)
    integers = bias.astype(np.float64) / unit
    if not np.array_equal(integers, np.round(integers)) or not np.isfinite(integers).all():
        raise RefusedError("has a bias that is not a multiple of input step times weight step", "export it again on the exact grid")
    return integers


def layer_sum(name: str, x: Floats, terms: Terms) -> Floats:
    """What the layer gives."""
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
    """A sum over so many values, as a row; of channels with units of their own, the one with the largest sums stands for all."""
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
    """Of what a layer reads; 0 is always part of it, because terms are left out at borders and in partial sums."""
    return min(0.0, float(x.low[0])), max(0.0, float(x.high[0]))


def _accumulator_bits(x: Floats, terms: Terms) -> int:
    """Kernels for unsigned bytes add up codes and take the zero point's share away at the end."""
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
