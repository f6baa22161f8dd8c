"""A tolerance that a human chose, for a pair whose function cannot be evaluated in float64.

Takes pairs of outputs, batch by batch. The comparison deals with names and shapes that differ.
"""

from dataclasses import dataclass

import numpy as np

from deploy.compare.bits import Array, Arrays, is_comparable, is_float, ulp_distance
from export.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What is allowed. If both kinds are stated, both must hold."""

    max_ulp: int | None = None
    atol: float | None = None
    rtol: float | None = None
    """With `atol`: |a - b| <= atol + rtol |a|, where a is the reference's value."""
    chosen_by: str = "a human"

    def __post_init__(self) -> None:
        numbers = [number for number in (self.max_ulp, self.atol, self.rtol) if number is not None]
        if not numbers or not all(0 <= number < float("inf") for number in numbers):
            raise UsageError(f"a tolerance needs --max-ulp, --atol or --rtol, each 0 or more, got {self.max_ulp}, {self.atol}, {self.rtol}")

    def __str__(self) -> str:
        ulps = [] if self.max_ulp is None else [f"{self.max_ulp} ulp"]
        absolute = [f"atol {self.atol or 0:g}, rtol {self.rtol or 0:g}"] if self.atol is not None or self.rtol is not None else []
        return f"{' and '.join([*ulps, *absolute])}, chosen by {self.chosen_by}"


@dataclass(frozen=True)
class Excess:
    """The values that a tolerance does not cover."""

    count: int = 0
    first: tuple[str, tuple[int, ...]] | None = None
    """The output, and the place in it, with its first axis counted over all batches."""


class ToleranceMeter:
    """Counts the values beyond a tolerance."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._beyond = Excess()
        self._num_samples = 0

    def update(self, a: Arrays, b: Arrays) -> None:
        """Take in one batch."""
        for name, values in a.items():
            if name in b and b[name].shape == values.shape and b[name].dtype == values.dtype and is_comparable(values.dtype):
                self._count(name, values, b[name])
        self._num_samples += max((len(values) if values.ndim else 1 for values in a.values()), default=0)

    @property
    def result(self) -> Excess:
        return self._beyond

    def _count(self, name: str, a: Array, b: Array) -> None:
        beyond = self._apart(a, b)
        number = int(np.count_nonzero(beyond))
        if number:
            place = tuple(int(i) for i in np.unravel_index(int(beyond.argmax()), beyond.shape))
            index = (place[0] + self._num_samples, *place[1:]) if place else ()
            self._beyond = Excess(self._beyond.count + number, self._beyond.first or (name, index))

    def _apart(self, a: Array, b: Array) -> Array:
        distance = ulp_distance(a, b)
        apart = np.zeros(a.shape, bool)
        if self._tolerance.max_ulp is not None:
            apart |= distance > self._tolerance.max_ulp
        if self._tolerance.atol is not None or self._tolerance.rtol is not None:
            apart |= ~self._is_close(a, b, distance) & (distance != 0)
        if is_float(a.dtype):
            apart |= ~(np.isfinite(a) & np.isfinite(b)) & (a != b)  # no bound covers an infinity against another value
        return apart

    def _is_close(self, a: Array, b: Array, distance: Array) -> Array:
        """Whether differences are within atol and rtol.

        For whole numbers the ulp distance is the difference. It is used because float64 does not
        hold every whole number beyond 2^53.
        """
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(wide_a - wide_b) if is_float(a.dtype) else distance.astype(np.float64)
            close: Array = difference <= (self._tolerance.atol or 0.0) + (self._tolerance.rtol or 0.0) * np.abs(wide_a)
        return close
