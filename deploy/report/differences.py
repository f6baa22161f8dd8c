"""Views of where two forms differ: histograms, errors at inner tensors, and worst samples.

Takes the content of verification.json and rows of inputs; returns views and PNG files.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.report.drawing import Axis, log_axis, number_in

Json = Mapping[str, Any]
_FINEST = 16
"""How many classes of distances have a bar of their own. The others share one in groups of four."""


@dataclass(frozen=True)
class Bar:
    """An error on a common log scale, in percent of the scale. None if it is not a number."""

    value: object
    budget: object
    length: float | None
    limit: float | None


def bar_on(axis: Axis, value: object, budget: object) -> Bar:
    """A value and its limit on a scale from 0 to 100."""
    number, allowed = number_in(value), number_in(budget)
    length = None if number is None else axis.at(number) if number > 0 else 0.0
    return Bar(value, budget, length, axis.at(allowed) if allowed else None)


@dataclass(frozen=True)
class HistogramBar:
    """The values whose distances are in one range."""

    label: str
    count: int
    length: float
    """In percent of the longest bar, by the logarithm of the count."""


@dataclass(frozen=True)
class Histogram:
    """How many values of a link are how far apart, over all of its outputs."""

    name: str
    bars: tuple[HistogramBar, ...]
    num_values: int


def histogram_of(name: str, record: Json) -> Histogram:
    """The histogram of a link, from the counts of all its outputs."""
    outputs = [each.get("ulp_histogram") or () for each in record.get("outputs") or () if isinstance(each, Mapping)]
    counts = [sum(int(each[place]) for each in outputs if place < len(each)) for place in range(max(map(len, outputs), default=0))]
    groups = _grouped(counts)
    longest = max((math.log1p(count) for _, count in groups), default=0.0)
    bars = tuple(HistogramBar(label, count, 100 * math.log1p(count) / longest if longest else 0.0) for label, count in groups)
    return Histogram(name, bars, sum(counts))


def _grouped(counts: Sequence[int]) -> list[tuple[str, int]]:
    edges = [*range(min(len(counts), _FINEST)), *range(_FINEST, len(counts), 4), len(counts)] if counts else []
    return [(_range(start, end), sum(counts[start:end])) for start, end in pairwise(edges)]


def _range(start: int, end: int) -> str:
    """The distances of some classes. Class 0 is 0, class k is 2^(k-1) to 2^k - 1."""
    if start < 2 and end == start + 1:
        return str(start)
    low, high = 2 ** (start - 1) if start else 0, 2 ** (end - 1) - 1
    return f"{low:,} to {high:,}" if high < 10**5 else f"2^{start - 1} to 2^{end - 1}"


@dataclass(frozen=True)
class InnerErrors:
    """Both stages' errors from the first layers to the last."""

    name: str
    low: float
    high: float
    rows: tuple[tuple[str, Bar, Bar], ...]


def inner_errors(name: str, record: Json) -> InnerErrors | None:
    """None if they were not measured."""
    entries = record.get("growth") or ()
    if not entries:
        return None
    axis = log_axis([number_in(entry.get(key)) for entry in entries for key in ("before", "after", "allowed")], 2, 100)
    rows = tuple((_layer(each), bar_on(axis, each.get("before"), None), bar_on(axis, each.get("after"), each.get("allowed"))) for each in entries)
    return InnerErrors(name, axis.low, axis.high, rows)


def _layer(entry: Json) -> str:
    return f"{entry.get('operation')} of {entry['layer']}" if entry.get("layer") else f"{entry.get('operation')} ({entry.get('tensor')})"


@dataclass(frozen=True)
class Worst:
    """A sample whose outputs are far apart, to look at."""

    sample: int
    output: str
    max_abs: object
    picture: str | None
    """As a data URL."""
    rows: tuple[tuple[Sequence[Any] | None, Sequence[Any] | None], ...]
    """Class and score before and after, rank by rank."""


def worst_of(record: Json, pictures: Mapping[int, bytes]) -> tuple[Worst, ...]:
    """The worst samples, farthest apart first."""
    return tuple(_worst(entry, pictures) for entry in record.get("worst") or ())


def _worst(entry: Json, pictures: Mapping[int, bytes]) -> Worst:
    sample = int(entry.get("sample") or 0)
    picture = pictures.get(sample)
    address = None if picture is None else f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    before, after = list(entry.get("before") or ()), list(entry.get("after") or ())
    length = max(len(before), len(after))
    rows = tuple(zip(before + [None] * (length - len(before)), after + [None] * (length - len(after)), strict=True))
    return Worst(sample, str(entry.get("output")), entry.get("max_abs"), address, rows)


_MOST_PIXELS = 512 * 512


def pictures_of(rows: Mapping[int, Mapping[str, NDArray[np.generic]]]) -> dict[int, bytes]:
    """A picture of each sample that is an image: one input of bytes, with 1 or 3 channels first."""
    found = {}
    for sample, inputs in rows.items():
        picture = _picture(next(iter(inputs.values()))) if len(inputs) == 1 else None
        if picture is not None:
            found[sample] = picture
    return found


def _picture(image: NDArray[np.generic]) -> bytes | None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or image[0].size > _MOST_PIXELS:
        return None
    pixels = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
