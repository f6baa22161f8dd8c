"""The samples on which two stages are farthest apart, with the rankings of both.

Takes pairs of outputs, batch by batch, and keeps a handful of samples.
"""

import heapq
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from deploy.compare.bits import Array, Arrays, is_comparable
from deploy.verify.verdict import Verdict, WorstSample

NUM_KEPT = 6
NUM_CLASSES = 5


class WorstMeter:
    """Finds the samples on which two stages are farthest apart."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._kept: dict[str, list[tuple[float, int, WorstSample]]] = {}
        """Of each output its own, because many outputs may be farthest apart on the same few
        samples."""

    def update(self, a: Arrays, b: Arrays) -> None:
        """Take in one batch. Outputs that cannot be paired are left to the comparison."""
        for name, values in a.items():
            if name in b and b[name].shape == values.shape and b[name].dtype == values.dtype and is_comparable(values.dtype) and values.size:
                self._look(name, values, b[name])
        self._num_samples += max((len(values) if values.ndim else 1 for values in a.values()), default=0)

    @property
    def result(self) -> tuple[WorstSample, ...]:
        ranked = sorted((kept for each in self._kept.values() for kept in each), key=lambda kept: (-kept[0], -kept[1]))
        first: dict[int, WorstSample] = {}
        for _, _, worst in ranked:
            first.setdefault(worst.sample, worst)
        return tuple(first.values())[:NUM_KEPT]

    def _look(self, name: str, a: Array, b: Array) -> None:
        apart = distances(a, b)
        for row in np.argsort(-apart, kind="stable")[:NUM_KEPT]:
            if apart[row] > 0:
                self._keep(name, int(row), float(apart[row]), a, b)

    def _keep(self, name: str, row: int, apart: float, a: Array, b: Array) -> None:
        kept = self._kept.setdefault(name, [])
        if len(kept) == NUM_KEPT and apart <= kept[0][0]:
            return
        sample = self._num_samples + row
        rankings = (_ranking(values[row]) if a.ndim == 2 and a.shape[1] > 1 else () for values in (a, b))
        before, after = rankings
        worst = WorstSample(sample=sample, output=name, max_abs=apart, before=before, after=after)
        heapq.heappush(kept, (apart, -sample, worst))
        if len(kept) > NUM_KEPT:
            heapq.heappop(kept)


def worst_samples(verdict: Verdict) -> set[int]:
    """The worst samples of all links."""
    return {worst.sample for link in verdict.links for worst in link.worst}


def rows_of(batches: Iterable[Arrays], samples: Collection[int]) -> dict[int, dict[str, Array]]:
    """The inputs of these samples, counted over all batches.

    A batch is left out if any of its arrays does not have a row per sample.
    """
    found: dict[int, dict[str, Array]] = {}
    start, last = 0, max(samples, default=-1)
    for batch in batches:
        if start > last:
            break
        number = max((len(rows) for rows in batch.values() if rows.ndim), default=0)
        if all(rows.ndim and len(rows) == number for rows in batch.values()):
            inside = [sample for sample in samples if start <= sample < start + number]
            found |= {sample: {name: rows[sample - start] for name, rows in batch.items()} for sample in inside}
        start += number
    return found


def distances(a: Array, b: Array) -> NDArray[np.float64]:
    """For each sample, the largest difference.

    It is infinite if one side is NaN, and the smallest positive number if only the bits differ.
    """
    rows = len(a) if a.ndim else 1
    other_bits = a.view(f"u{a.dtype.itemsize}") != b.view(f"u{b.dtype.itemsize}")
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    apart = np.where(other_bits, np.where(np.isnan(apart), np.inf, np.maximum(apart, np.nextafter(0.0, 1.0))), 0.0)
    found: NDArray[np.float64] = apart.reshape(rows, -1).max(axis=1)
    return found


def _ranking(scores: Array) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:NUM_CLASSES]
    return tuple((int(each), float(scores[each])) for each in order)
