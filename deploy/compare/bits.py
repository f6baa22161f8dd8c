"""Whether two sets of named arrays are the same to the bit, and how and where they differ.

Takes NumPy arrays by name, whole or batch by batch; its memory does not grow. Knows no model and
no tolerance.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Number = bool | int | float
FailureKind = Literal[
    "no batches",
    "fewer batches",
    "no outputs",
    "missing output",
    "other names",
    "no values",
    "shape",
    "dtype",
    "unsupported dtype",
]


@dataclass(frozen=True)
class Failure:
    """Why something was not compared. A comparison with a failure is never a pass."""

    kind: FailureKind
    message: str
    output: str | None = None


@dataclass(frozen=True)
class FirstDifference:
    """The first place with different bits: by batch, then by order of outputs, then by index."""

    output: str
    index: tuple[int, ...]
    """The place in the output. Its first axis is counted over all batches."""
    sample: int
    values: tuple[Number, Number]
    bits: tuple[str, str]


@dataclass(frozen=True)
class OutputComparison:
    """One output, over all batches."""

    name: str
    dtype: str
    num_samples: int
    num_values: int
    max_ulp: int
    """0 exactly if all bits are equal; see `ulp_distance`."""
    max_abs: float
    """Taken over the places where both sides are finite, as is `rms`."""
    rms: float
    different_bits: int
    different_values: int
    """+0.0 against -0.0 does not count, nor does one NaN against another."""
    nonfinite: int
    """Places where at least one side is NaN or infinite."""
    nan: int
    """Of these, the places where at least one side is NaN."""
    nonfinite_apart: int
    """Of these, all but the places where both sides hold NaN, or both +inf, or both -inf."""
    ulp_histogram: tuple[int, ...]
    """How many values are 0, 1, 2 to 3, 4 to 7, ... units in the last place apart."""
    spread: float = 0.0
    """How far the first side's values are from those of its first sample, at most.

    It is 0 if the samples make no difference.
    """


@dataclass(frozen=True)
class Comparison:
    """What was found, per output and over all of them."""

    outputs: tuple[OutputComparison, ...]
    failures: tuple[Failure, ...]
    num_batches: int
    rms: float
    first_difference: FirstDifference | None

    @property
    def bitwise(self) -> bool:
        """Whether something was compared, nothing was left out, and every bit is equal."""
        return bool(self.outputs) and not self.failures and self.different_bits == 0

    @property
    def num_samples(self) -> int:
        return max((output.num_samples for output in self.outputs), default=0)

    @property
    def num_values(self) -> int:
        return sum(output.num_values for output in self.outputs)

    @property
    def max_ulp(self) -> int:
        return max((output.max_ulp for output in self.outputs), default=0)

    @property
    def max_abs(self) -> float:
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def different_bits(self) -> int:
        return sum(output.different_bits for output in self.outputs)

    @property
    def different_values(self) -> int:
        return sum(output.different_values for output in self.outputs)

    @property
    def nonfinite_apart(self) -> int:
        return sum(output.nonfinite_apart for output in self.outputs)


class Magnitudes:
    """Maximum and root mean square of numbers that arrive in pieces.

    Squares are scaled, so that none of them under- or overflows.
    """

    def __init__(self) -> None:
        self.max = 0.0
        self.count = 0
        self._scaled_sum = 0.0

    def add(self, values: NDArray[np.float64], num_zeros: int = 0) -> None:
        """Take in values, and a number of zeros, which need no array."""
        self.count += values.size + num_zeros
        largest = float(np.abs(values).max(initial=0.0))
        if largest > self.max:
            self._scaled_sum *= (self.max / largest) ** 2
            self.max = largest
        if 0 < self.max < math.inf:
            self._scaled_sum += float(np.square(values / self.max).sum())

    @property
    def rms(self) -> float:
        if self.max == math.inf:
            return math.inf
        return self.max * math.sqrt(self._scaled_sum / self.count) if self.count else 0.0


def ordered_bits(array: Array) -> Array:
    """The bits as unsigned integers that are ordered like the values.

    The order is -NaN, -inf, ..., -0.0, +0.0, ..., +inf, NaN. Neighbouring numbers are one apart,
    and so are -0.0 and +0.0. Only equal bits have the same integer.
    """
    bits = _bits(array)
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    if is_float(array.dtype):
        return np.where(bits & sign, ~bits, bits | sign)
    return bits ^ sign if array.dtype.kind == "i" else bits


def ulp_distance(a: Array, b: Array) -> Array:
    """How far apart elements are in `ordered_bits`. Dtypes and shapes must be equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise ValueError(f"distances need one dtype and shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    a, b = ordered_bits(a), ordered_bits(b)
    distance: Array = np.maximum(a, b) - np.minimum(a, b)
    return distance


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is one of the four float types that are compared.

    They are known by name, because NumPy gives bfloat16, which ml_dtypes adds, the kind 'V'.
    """
    return dtype.name in ("float16", "bfloat16", "float32", "float64")


def is_comparable(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype have an order and a distance."""
    return is_float(dtype) or dtype.kind in "iub"


def unmatched(a: Arrays, b: Arrays) -> list[Failure]:
    """Why values of `a` and `b` cannot be paired by name and place.

    Nothing is broadcast, and nothing is paired by position.
    """
    failures = _unmatched_names(a, b)
    for name in _shared(a, b):
        if a[name].shape != b[name].shape:
            failures.append(Failure("shape", f"{name}: shapes {a[name].shape} and {b[name].shape}", name))
        elif a[name].size == 0:
            failures.append(Failure("no values", f"{name}: shape {a[name].shape} holds no value", name))
    return failures


def compare(a: Arrays, b: Arrays) -> Comparison:
    """Compare two whole sets of outputs."""
    return compare_batches([a], [b])


def compare_batches(a: Iterable[Arrays], b: Iterable[Arrays]) -> Comparison:
    """Compare two runs batch by batch. It is a failure if one run ends before the other."""
    comparator = Comparator()
    for batch_a, batch_b in zip_longest(a, b):
        if batch_a is None or batch_b is None:
            comparator.fail(_fewer(comparator.num_batches, "first" if batch_a is None else "second"))
            break
        comparator.update(batch_a, batch_b)
    return comparator.result


class Comparator:
    """The streaming form of `compare`."""

    def __init__(self) -> None:
        self.num_batches = 0
        self._num_samples = 0
        self._tallies: dict[str, _Tally] = {}
        self._names: set[str] = set()
        self._failures: dict[tuple[FailureKind, str | None], Failure] = {}
        self._total = Magnitudes()
        self._first: FirstDifference | None = None

    def fail(self, failure: Failure) -> None:
        """Record that something was left out. The first failure of each kind and output is kept."""
        self._failures.setdefault((failure.kind, failure.output), failure)

    def update(self, a: Arrays, b: Arrays) -> None:
        """Take in one batch of both sides."""
        a, b = _as_arrays(a), _as_arrays(b)
        failures = [*unmatched(a, b), *_other_dtypes(a, b), *self._changed_outputs(a)]
        for failure in failures:
            self.fail(failure)
        refused = {failure.output for failure in failures}
        for name in _shared(a, b):
            if name not in refused:
                self._compare_output(name, a[name], b[name])
        self.num_batches += 1
        self._num_samples += max((len(array) if array.ndim else 1 for array in a.values()), default=0)

    @property
    def result(self) -> Comparison:
        failures = list(self._failures.values())
        if self.num_batches == 0 and not failures:
            failures.append(Failure("no batches", "there was no batch to compare"))
        outputs = tuple(tally.result for tally in self._tallies.values())
        return Comparison(outputs, tuple(failures), self.num_batches, self._total.rms, self._first)

    def _changed_outputs(self, a: Arrays) -> Iterable[Failure]:
        if self.num_batches == 0:
            self._names = set(a)
        if set(a) != self._names:
            yield Failure("other names", f"outputs change between batches: {sorted(self._names)}, then {sorted(a)}")
        for name in a.keys() & self._tallies.keys():
            if a[name].dtype.name != self._tallies[name].dtype:
                yield Failure("dtype", f"{name}: {self._tallies[name].dtype}, then {a[name].dtype}", name)

    def _compare_output(self, name: str, a: Array, b: Array) -> None:
        tally = self._tallies.setdefault(name, _Tally(name, a.dtype.name))
        different = _bits(a) != _bits(b)
        with np.errstate(invalid="ignore", over="ignore"):  # here a signalling NaN or a huge difference is data
            tally.update(a, b, different, self._total)
        if self._first is None and different.any():
            self._first = _first_difference(name, a, b, different, self._num_samples)


class _Tally:
    """The running counts of one output."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype
        self._num_samples = self._num_values = self._max_ulp = 0
        self._different_bits = self._different_values = self._nonfinite = self._nan = self._nonfinite_apart = 0
        self._magnitudes = Magnitudes()
        self._spread = 0.0
        self._of_the_first: Array | None = None
        self._lengths = np.zeros(65, np.int64)

    def update(self, a: Array, b: Array, different: NDArray[np.bool_], total: Magnitudes) -> None:
        self._num_samples += len(a) if a.ndim else 1
        self._num_values += a.size
        self._see_spread(a)
        both_finite = _finite(a) & _finite(b)
        num_nonfinite = a.size - int(np.count_nonzero(both_finite))
        self._nonfinite += num_nonfinite
        if num_nonfinite:
            self._nan += int(np.count_nonzero(np.isnan(a) | np.isnan(b)))
        a, b, both_finite = a[different], b[different], both_finite[different]
        self._add_differences(a, b)
        self._nonfinite_apart += int(np.count_nonzero(_values_differ(a, b) & ~both_finite))
        sizes = _absolute_difference(a[both_finite], b[both_finite])
        num_equal = different.size - num_nonfinite - sizes.size
        for magnitudes in (self._magnitudes, total):
            magnitudes.add(sizes, num_equal)

    def _see_spread(self, a: Array) -> None:
        if not a.ndim or not len(a) or (self._of_the_first is not None and self._of_the_first.shape != a.shape[1:]):
            return
        if self._of_the_first is None:
            self._of_the_first = a[0].astype(np.float64)
        apart = np.abs(a.astype(np.float64) - self._of_the_first)
        self._spread = max(self._spread, float(apart[np.isfinite(apart)].max(initial=0.0)))

    def _add_differences(self, a: Array, b: Array) -> None:
        self._different_bits += a.size
        self._different_values += int(np.count_nonzero(_values_differ(a, b)))
        distances = ulp_distance(a, b)
        self._max_ulp = max(self._max_ulp, int(distances.max(initial=0)))
        self._lengths += np.bincount(_bit_lengths(distances).reshape(-1), minlength=65)

    @property
    def result(self) -> OutputComparison:
        return OutputComparison(
            name=self.name,
            dtype=self.dtype,
            num_samples=self._num_samples,
            num_values=self._num_values,
            max_ulp=self._max_ulp,
            max_abs=self._magnitudes.max,
            rms=self._magnitudes.rms,
            different_bits=self._different_bits,
            different_values=self._different_values,
            nonfinite=self._nonfinite,
            nan=self._nan,
            nonfinite_apart=self._nonfinite_apart,
            ulp_histogram=self._histogram(),
            spread=self._spread,
        )

    def _histogram(self) -> tuple[int, ...]:
        counts = [self._num_values - self._different_bits, *self._lengths[1:].tolist()]
        return tuple(counts[: self._max_ulp.bit_length() + 1])


def _bit_lengths(distances: Array) -> NDArray[np.int64]:
    """How many bits each distance needs.

    A float64 cannot hold 64 bits at once, so the two halves are measured apart, which is exact.
    """
    high, low = (distances.astype(np.uint64) >> np.uint64(32), distances.astype(np.uint64) & np.uint64(0xFFFFFFFF))
    lengths = np.where(high > 0, 32 + np.frexp(high.astype(np.float64))[1], np.frexp(low.astype(np.float64))[1])
    return lengths.astype(np.int64)


def _as_arrays(outputs: Arrays) -> dict[str, Array]:
    """The outputs in native byte order, which reading their bits relies on."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    return {name: a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("=")) for name, a in arrays.items()}


def _shared(a: Arrays, b: Arrays) -> list[str]:
    return [name for name in a if name in b]


def _unmatched_names(a: Arrays, b: Arrays) -> list[Failure]:
    if not a and not b:
        return [Failure("no outputs", "neither side has an output")]
    only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if only_a and only_b:
        return [Failure("other names", f"outputs {only_a} on one side, {only_b} on the other")]
    if only_a or only_b:
        side = "second" if only_a else "first"
        return [Failure("missing output", f"the {side} side lacks the outputs {only_a or only_b}")]
    return []


def _other_dtypes(a: Arrays, b: Arrays) -> Iterable[Failure]:
    for name in _shared(a, b):
        if a[name].dtype != b[name].dtype:
            yield Failure("dtype", f"{name}: {a[name].dtype} and {b[name].dtype}", name)
        elif not is_comparable(a[name].dtype):
            yield Failure("unsupported dtype", f"{name}: values of {a[name].dtype} have no comparison", name)


def _fewer(num_batches: int, side: str) -> Failure:
    return Failure("fewer batches", f"the {side} side ended after {num_batches} batches, the other went on")


def _bits(array: Array) -> Array:
    bits: Array = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    return bits


def _finite(array: Array) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(array)
    return finite


def _values_differ(a: Array, b: Array) -> NDArray[np.bool_]:
    differ: NDArray[np.bool_] = (a != b) & ~(np.isnan(a) & np.isnan(b))
    return differ


def _absolute_difference(a: Array, b: Array) -> NDArray[np.float64]:
    if not is_float(a.dtype):
        return ulp_distance(a, b).astype(np.float64)
    size: NDArray[np.float64] = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return size


def _first_difference(name: str, a: Array, b: Array, different: NDArray[np.bool_], offset: int) -> FirstDifference:
    place = tuple(int(i) for i in np.unravel_index(int(different.argmax()), different.shape))
    index = (place[0] + offset, *place[1:]) if place else ()
    bits = tuple(f"0x{int(_bits(x)[place]):0{2 * x.dtype.itemsize}x}" for x in (a, b))
    return FirstDifference(name, index, index[0] if index else offset, (_number(a[place]), _number(b[place])), (bits[0], bits[1]))


def _number(value: Any) -> Number:
    number: Number = value.item()
    return number
