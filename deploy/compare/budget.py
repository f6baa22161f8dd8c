"""How far a runtime may be from a float64 evaluation of the same weights: a derived budget.

It is never a chosen tolerance. Takes the outputs of two stages and of the float64 reference, batch
by batch. Knows no runtime and no model.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.compare.bits import Array, Arrays, Failure, FailureKind, Magnitudes, is_comparable, is_float, ulp_distance, unmatched
from deploy.runners.runner import Precision

UNIT_ROUNDOFF: dict[Precision, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
ROOM = 4
"""A runtime adds in a different order than training does, so its error differs but is of one kind.

Up to twice the error of training was seen (benchmarks/chain.py).
"""
NUM_CHANGES_KEPT = 1000


@dataclass(frozen=True)
class Errors:
    """A stage's distance from the float64 outputs: of one output or of all, over all samples."""

    max: float
    rms: float
    largest_output: float
    num_values: int
    """Places that are finite on both sides. The other figures are taken over these."""
    nonfinite_apart: int
    """Places where NaN, +inf or -inf is on one side only."""
    nonfinite: int = 0
    """Places where the stage's own output is NaN or infinite."""
    infinite_alike: int = 0
    """Of these, the places where float64 gives the same infinity."""
    failures: tuple[Failure, ...] = ()
    num_samples: int = 0
    exact: bool = False
    """Whether these are whole numbers or truth values, which nothing rounds."""

    def __str__(self) -> str:
        apart = f", NaN or infinity on one side only in {self.nonfinite_apart} places" if self.nonfinite_apart else ""
        return f"max {self.max:.3g}, rms {self.rms:.3g}{apart}"

    @property
    def valid(self) -> bool:
        """Whether the figures cover every output."""
        return self.num_values > 0 and self.nonfinite_apart == 0 and not self.failures


@dataclass(frozen=True)
class Budget:
    """The largest errors that are allowed."""

    max: float
    rms: float

    def __str__(self) -> str:
        return f"max {self.max:.3g}, rms {self.rms:.3g}"

    def covers(self, errors: Errors) -> bool:
        return errors.valid and errors.max <= self.max and errors.rms <= self.rms


@dataclass(frozen=True)
class OutputErrors:
    """Errors over everything and of each output. A large output must not excuse a small one."""

    whole: Errors
    outputs: Mapping[str, Errors]


@dataclass(frozen=True)
class Budgets:
    """How far off each output may be. None means there is no budget for it."""

    outputs: Mapping[str, Budget | None]

    def covers(self, errors: OutputErrors) -> bool:
        """Whether everything was measured and is within its budget."""
        allowed = [(self.outputs.get(name), each) for name, each in errors.outputs.items()]
        return errors.whole.valid and all(budget is not None and budget.covers(each) for budget, each in allowed)

    def tightest(self, errors: OutputErrors) -> str | None:
        """The output that uses most of its budget, or has none. None if nothing was measured."""
        return max(errors.outputs, key=lambda name: share_of(self.outputs.get(name), errors.outputs[name]), default=None)


def share_of(allowed: Budget | None, errors: Errors) -> float:
    """How much of a budget is used."""
    if allowed is None or not errors.valid:
        return math.inf
    return share_used((errors.max, errors.rms), (allowed.max, allowed.rms))


def share_used(errors: tuple[float, float], allowed: tuple[float, float]) -> float:
    """The larger share of what is allowed that a maximum and an RMS error use. Where nothing is
    allowed, any error is infinitely much."""
    return max(found / most if most else (math.inf if found else 0.0) for found, most in zip(errors, allowed, strict=True))


def budgets(training: OutputErrors, training_precision: Precision, precision: Precision, *, uncertain: bool = False) -> Budgets:
    """A budget for each output; see `budget`."""
    return Budgets({name: budget(each, training_precision, precision, uncertain=uncertain) for name, each in training.outputs.items()})


def budget(training: Errors, training_precision: Precision, precision: Precision, *, uncertain: bool = False) -> Budget | None:
    """4 * e_train * (u / u_train), at least one ulp of the largest output.

    None if training has no valid errors. The ulp is that of the requested precision, because
    nothing that computes in it can come closer. Whole numbers, which nothing rounds, have neither
    factor nor ulp. `uncertain` says that other code than the training graph made the float64
    evaluation. If the two then share less than half of their digits, either may compute another
    function, and there is no budget.
    """
    if not training.valid or (uncertain and training.max > math.sqrt(UNIT_ROUNDOFF[training_precision]) * training.largest_output):
        return None
    if training.exact:
        return Budget(training.max, training.rms)
    factor = factor_of(training_precision, precision)
    floor = ulp(training.largest_output, precision)
    return Budget(max(factor * training.max, floor), max(factor * training.rms, floor))


def factor_of(training: Precision, precision: Precision) -> float:
    """How many times as large as training's error another error may be."""
    return ROOM * UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF[training]


def ulp(value: float, precision: Precision) -> float:
    """The distance between neighbouring numbers at this value.

    It is 0 at 0, where a result cannot be off by rounding.
    """
    return 2 * UNIT_ROUNDOFF[precision] * 2.0 ** (math.frexp(value)[1] - 1) if value else 0.0


class ErrorMeter:
    """Measures a stage against the float64 outputs."""

    def __init__(self) -> None:
        self._whole = _Tally()
        self._outputs: dict[str, _Tally] = {}
        self._failures: dict[tuple[FailureKind, str | None], Failure] = {}

    def update(self, reference: Arrays, outputs: Arrays) -> None:
        """Take in one batch. Dtypes may differ, but names and shapes may not."""
        failures = [*unmatched(reference, outputs), *_without_distance(outputs)]
        for failure in failures:
            self._failures.setdefault((failure.kind, failure.output), failure)
        refused = {failure.output for failure in failures}
        for name in reference:
            if name in outputs and name not in refused:
                with np.errstate(invalid="ignore", over="ignore"):  # here NaN and infinity are data
                    self._measure(name, reference[name], outputs[name])

    @property
    def result(self) -> Errors:
        """The errors over all outputs."""
        return self._whole.errors(tuple(self._failures.values()))

    @property
    def measured(self) -> OutputErrors:
        return OutputErrors(self.result, {name: tally.errors() for name, tally in self._outputs.items()})

    def _measure(self, name: str, reference: Array, values: Array) -> None:
        exact = not is_float(reference.dtype) and reference.dtype == values.dtype
        # Whole numbers may be too large for float64 to tell neighbours apart.
        sizes = ulp_distance(reference, values).astype(np.float64) if exact else None
        for tally in (self._whole, self._outputs.setdefault(name, _Tally())):
            tally.exact &= exact
            tally.add(reference.astype(np.float64), values.astype(np.float64), sizes)


class _Tally:
    """The running figures of one output, or of all."""

    def __init__(self) -> None:
        self.exact = True
        self._magnitudes = Magnitudes()
        self._largest_output = 0.0
        self._nonfinite_apart = self._nonfinite = self._infinite_alike = self._num_samples = 0

    def add(self, reference: NDArray[np.float64], values: NDArray[np.float64], sizes: NDArray[np.float64] | None) -> None:
        """Take in values. `sizes` are their distances, if these are known exactly."""
        self._num_samples += len(values) if values.ndim else 1
        finite = np.isfinite(reference) & np.isfinite(values)
        apart = ~finite & (reference != values) & ~(np.isnan(reference) & np.isnan(values))
        self._nonfinite_apart += int(np.count_nonzero(apart))
        self._nonfinite += int(np.count_nonzero(~np.isfinite(values)))
        self._infinite_alike += int(np.count_nonzero(np.isinf(values) & (values == reference)))
        self._largest_output = max(self._largest_output, float(np.abs(reference[finite]).max(initial=0.0)))
        self._magnitudes.add(values[finite] - reference[finite] if sizes is None else sizes[finite])

    def errors(self, failures: tuple[Failure, ...] = ()) -> Errors:
        return Errors(
            max=self._magnitudes.max,
            rms=self._magnitudes.rms,
            largest_output=self._largest_output,
            num_values=self._magnitudes.count,
            nonfinite_apart=self._nonfinite_apart,
            nonfinite=self._nonfinite,
            infinite_alike=self._infinite_alike,
            failures=failures,
            num_samples=self._num_samples,
            exact=self.exact and self._magnitudes.count > 0,
        )


@dataclass(frozen=True, order=True)
class TopOneChange:
    """A sample whose first class differs between two stages."""

    margin: float
    """How far apart the two classes are in float64."""
    sample: int
    output: str
    classes: tuple[int, int]


@dataclass(frozen=True)
class TopOne:
    """Changes of the first class between two stages. `ties` are those that the errors explain."""

    num_changes: int
    num_ties: int
    changes: tuple[TopOneChange, ...]
    """The changes with the widest margins, widest first."""

    @property
    def all_ties(self) -> bool:
        return self.num_ties == self.num_changes


class TopOneMeter:
    """Finds the samples whose first class differs, in outputs of shape N x classes."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._outputs: dict[str, _Changes] = {}

    def update(self, reference: Arrays, a: Arrays, b: Arrays) -> None:
        """Take in one batch. Outputs that do not match are skipped: the comparison fails them."""
        for name, scores in reference.items():
            if name in a and name in b and a[name].shape == b[name].shape == scores.shape and has_classes(scores):
                for change in self._changes(name, scores, a[name], b[name]):
                    self._outputs.setdefault(name, _Changes()).keep(change)
        self.skip(reference)

    def skip(self, outputs: Arrays) -> None:
        """Skip a batch in which nothing changes."""
        self._num_samples += max((len(scores) if scores.ndim else 1 for scores in outputs.values()), default=0)

    def result(self, errors: Mapping[str, float], num_listed: int = 20) -> TopOne:
        """The changes so far. A margin below twice the output's error counts as a tie."""
        changes = sorted((change for output in self._outputs.values() for change in output.widest), reverse=True)
        ties = sum(output.num_ties(errors.get(name, 0.0)) for name, output in self._outputs.items())
        return TopOne(sum(output.number for output in self._outputs.values()), ties, tuple(changes[:num_listed]))

    def _changes(self, name: str, reference: Array, a: Array, b: Array) -> Iterable[TopOneChange]:
        first_a, first_b = a.argmax(axis=1), b.argmax(axis=1)
        for row in np.flatnonzero(first_a != first_b):
            classes = int(first_a[row]), int(first_b[row])
            margin = abs(float(reference[row, classes[0]]) - float(reference[row, classes[1]]))
            sample = self._num_samples + int(row)
            yield TopOneChange(margin if math.isfinite(margin) else math.inf, sample, name, classes)


class _Changes:
    """The changes of one output."""

    def __init__(self) -> None:
        self.number = 0
        self.widest: list[TopOneChange] = []

    def keep(self, change: TopOneChange) -> None:
        self.number += 1
        if len(self.widest) < NUM_CHANGES_KEPT:
            heapq.heappush(self.widest, change)
        else:
            heapq.heappushpop(self.widest, change)

    def num_ties(self, error: float) -> int:
        """How many changes are ties, judged by the widest margins.

        If all kept margins, a thousand of them, are too wide for ties, the rest count as no ties.
        """
        num_apart = sum(change.margin >= 2 * error for change in self.widest)
        return self.number - num_apart if num_apart < len(self.widest) else 0


def _without_distance(outputs: Arrays) -> Iterable[Failure]:
    for name, values in outputs.items():
        if not is_comparable(values.dtype):
            yield Failure("unsupported dtype", f"{name}: values of {values.dtype} have no distance", name)


def has_classes(scores: Array) -> bool:
    """Whether an output has the shape N x classes."""
    return scores.ndim == 2 and scores.shape[1] > 1 and is_float(scores.dtype)


def is_covered(training: Arrays, outputs: Arrays, known: OutputErrors, factor: float) -> bool:
    """Whether outputs are so near to the training graph's that they must be within the budget."""
    return outputs.keys() == training.keys() <= known.outputs.keys() and all(
        _is_near(training[name], outputs[name], known.outputs[name], factor) for name in outputs
    )


def _is_near(training: Array, values: Array, known: Errors, factor: float) -> bool:
    if values.dtype != training.dtype or values.shape != training.shape or not is_comparable(values.dtype):
        return False
    if not is_float(values.dtype):
        return np.array_equal(training, values)
    if not (np.isfinite(values).all() and np.isfinite(training).all()):  # where both overflow alike, float64 may be finite
        return False
    apart = np.abs(values.astype(np.float64) - training.astype(np.float64))
    found = Magnitudes()
    found.add(apart)
    # By the triangle inequality, the error is then at most `factor` times the known one.
    return found.max <= (factor - 1) * known.max and found.rms <= (factor - 1) * known.rms


def first_class_changes(a: Arrays, b: Arrays) -> bool:
    """Whether two stages disagree about the first class of some sample.

    Only float64 can say whether that is a tie.
    """
    shared = [(scores, b[name]) for name, scores in a.items() if name in b and has_classes(scores) and b[name].shape == scores.shape]
    return any(bool((one.argmax(axis=1) != other.argmax(axis=1)).any()) for one, other in shared)
