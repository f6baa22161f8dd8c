"""How far a runtime may be from the float64 evaluation of the same weights: a derived budget, never a chosen tolerance.

Takes outputs of two stages and of the float64 reference, batch by batch. Knows no runtime and no model.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.verify.compare import Array, Arrays, Failure, FailureKind, Magnitudes, is_comparable, unmatched

Precision = Literal["float64", "float32", "tf32", "float16", "bfloat16"]

UNIT_ROUNDOFF: dict[Precision, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}

ROOM = 4
"""A runtime orders its sums otherwise than training does, and so has another error of the same kind: up to twice was seen
(benchmarks/chain.py)."""

NUM_CHANGES_KEPT = 1000


@dataclass(frozen=True)
class Errors:
    """The distance of a stage from the float64 outputs, over all samples and outputs."""

    max: float
    rms: float
    largest_output: float
    num_values: int
    """Places that are finite on both sides: the ones behind the other figures."""
    nonfinite_apart: int
    """Places where NaN, +inf or -inf stands on one side only."""
    nonfinite: int = 0
    """Places where the stage's own output is NaN or infinite."""
    failures: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        apart = f", NaN or infinity on one side only in {self.nonfinite_apart} places" if self.nonfinite_apart else ""
        return f"max {self.max:.3g}, rms {self.rms:.3g}{apart}"

    @property
    def valid(self) -> bool:
        """Whether the figures speak for every output."""
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


def budget(training: Errors, training_precision: Precision, precision: Precision, *, doubtful: bool = False) -> Budget | None:
    """4 * e_train * (u / u_train), at least one ulp of the largest output; None where training has no valid errors.

    The ulp is that of the precision that was asked for: whoever computes in it cannot come closer. A float64 evaluation is
    doubtful that other code than the training graph's made: where the two share less than half of their digits, either may
    compute another function, and there is no budget.
    """
    if not training.valid or (doubtful and training.max > math.sqrt(UNIT_ROUNDOFF[training_precision]) * training.largest_output):
        return None
    factor = ROOM * UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF[training_precision]
    floor = ulp(training.largest_output, precision)
    return Budget(max(factor * training.max, floor), max(factor * training.rms, floor))


def ulp(value: float, precision: Precision) -> float:
    """The distance between neighbouring numbers at this value; 0 at 0, where a result cannot be off by rounding."""
    return 2 * UNIT_ROUNDOFF[precision] * 2.0 ** (math.frexp(value)[1] - 1) if value else 0.0


class ErrorMeter:
    """Measures a stage against the float64 outputs."""

    def __init__(self) -> None:
        self._magnitudes = Magnitudes()
        self._largest_output = 0.0
        self._nonfinite_apart = 0
        self._nonfinite = 0
        self._failures: dict[tuple[FailureKind, str | None], Failure] = {}

    def update(self, reference: Arrays, outputs: Arrays) -> None:
        """Take in one batch. Dtypes may differ, names and shapes may not."""
        failures = [*unmatched(reference, outputs), *_without_distance(outputs)]
        for failure in failures:
            self._failures.setdefault((failure.kind, failure.output), failure)
        refused = {failure.output for failure in failures}
        for name in reference:
            if name in outputs and name not in refused:
                with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are data here
                    self._measure(reference[name].astype(np.float64), outputs[name].astype(np.float64))

    @property
    def result(self) -> Errors:
        return Errors(
            max=self._magnitudes.max,
            rms=self._magnitudes.rms,
            largest_output=self._largest_output,
            num_values=self._magnitudes.count,
            nonfinite_apart=self._nonfinite_apart,
            nonfinite=self._nonfinite,
            failures=tuple(self._failures.values()),
        )

    def _measure(self, reference: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        finite = np.isfinite(reference) & np.isfinite(values)
        apart = ~finite & (reference != values) & ~(np.isnan(reference) & np.isnan(values))
        self._nonfinite_apart += int(np.count_nonzero(apart))
        self._nonfinite += int(np.count_nonzero(~np.isfinite(values)))
        self._largest_output = max(self._largest_output, float(np.abs(reference[finite]).max(initial=0.0)))
        self._magnitudes.add(values[finite] - reference[finite])


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
    """Those with the widest margins, widest first."""

    @property
    def all_ties(self) -> bool:
        return self.num_ties == self.num_changes


class TopOneMeter:
    """Finds the samples whose first class differs, in outputs of shape N x classes."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._num_changes = 0
        self._widest: list[TopOneChange] = []

    def update(self, reference: Arrays, a: Arrays, b: Arrays) -> None:
        """Take in one batch; an output that is not alike on all sides is left to the comparison, which fails it."""
        for name, scores in reference.items():
            if name in a and name in b and a[name].shape == b[name].shape == scores.shape and _has_classes(scores):
                for change in self._changes(name, scores, a[name], b[name]):
                    self._keep(change)
        self._num_samples += max((len(scores) if scores.ndim else 1 for scores in reference.values()), default=0)

    def result(self, error: float, num_listed: int = 20) -> TopOne:
        """Count as ties the changes whose margin is below twice this error.

        The widest margins decide. Only where more than a thousand of them are no ties, the rest go uncounted as ties.
        """
        widest = sorted(self._widest, reverse=True)
        num_apart = sum(change.margin >= 2 * error for change in widest)
        ties = self._num_changes - num_apart if num_apart < len(widest) else 0
        return TopOne(self._num_changes, ties, tuple(widest[:num_listed]))

    def _changes(self, name: str, reference: Array, a: Array, b: Array) -> Iterable[TopOneChange]:
        first_a, first_b = a.argmax(axis=1), b.argmax(axis=1)
        for row in np.flatnonzero(first_a != first_b):
            classes = int(first_a[row]), int(first_b[row])
            margin = abs(float(reference[row, classes[0]]) - float(reference[row, classes[1]]))
            sample = self._num_samples + int(row)
            yield TopOneChange(margin if math.isfinite(margin) else math.inf, sample, name, classes)

    def _keep(self, change: TopOneChange) -> None:
        self._num_changes += 1
        if len(self._widest) < NUM_CHANGES_KEPT:
            heapq.heappush(self._widest, change)
        else:
            heapq.heappushpop(self._widest, change)


def _without_distance(outputs: Arrays) -> Iterable[Failure]:
    for name, values in outputs.items():
        if not is_comparable(values.dtype):
            yield Failure("unsupported dtype", f"{name}: values of {values.dtype} have no distance", name)


def _has_classes(scores: Array) -> bool:
    return scores.ndim == 2 and scores.shape[1] > 1
