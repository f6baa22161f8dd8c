"""Figures of a network's filters, and their charts in the report: by layer, and by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.report.drawing import BoxChart, Quantiles, Scale, box_chart, number_in

Json = Mapping[str, Any]


def filter_figures(name: str, kind: str, weight: NDArray[Any], scale: NDArray[Any] | None) -> dict[str, Any]:
    """What the report draws of one layer: quantiles over its filters, however many there are.

    `weight` is the trained direction V (or the plain weight), outputs first. `scale` is the e^g of
    each filter. The mean is that of a slice, which is a filter's kernel for one input channel. If a
    kernel is one point, it is the mean of the whole filter.
    """
    filters = np.asarray(weight, np.float64).reshape(*weight.shape[:2], -1)
    slices = filters.transpose(0, 2, 1) if filters.shape[2] == 1 else filters
    finite = np.isfinite(slices).all(axis=(1, 2))
    slices = slices[finite]
    means, norms = slices.mean(axis=2), np.sqrt(np.square(slices).sum(axis=(1, 2)))
    off = np.sqrt(slices.shape[2] * np.square(means).sum(axis=1))
    return {
        "name": name,
        "kind": kind,
        "shape": list(weight.shape),
        "num_filters": int(weight.shape[0]),
        "num_not_finite": int(np.count_nonzero(~finite)),
        "mean_over": "filter" if filters.shape[2] == 1 else "slice",
        "norms": quantiles(norms),
        "slice_means": quantiles(means),
        "off_isocline": quantiles(np.divide(off, norms, out=np.zeros_like(off), where=norms > 0)),
        "scale": None if scale is None else quantiles(np.asarray(scale, np.float64)),
    }


def quantiles(values: NDArray[np.float64]) -> list[float] | None:
    """Minimum, lower quartile, median, upper quartile and maximum of the finite values, or None."""
    values = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])] if values.size else None


@dataclass(frozen=True)
class FilterChart:
    """One property of all layers, drawn for a wide and for a narrow page."""

    title: str
    meaning: str
    charts: tuple[BoxChart, BoxChart]


@dataclass(frozen=True)
class FiltersView:
    """The layers in the order of the graph, and their charts."""

    layers: Sequence[Json]
    charts: tuple[FilterChart, ...]
    num_not_finite: int


@dataclass(frozen=True)
class Property:
    """A property of filters that is drawn by layer."""

    key: str
    title: str
    meaning: str
    reference: float | None
    scale: Scale


_PROPERTIES = (
    Property("norms", "Norm of each filter", "The line is at 1, where the penalty anchors a filter.", 1, "linear"),
    Property(
        "slice_means",
        "Mean of each slice",
        "The line is at 0. A slice is a filter's kernel for one input channel. Linear around 0, logarithmic beyond.",
        0,
        "signed log",
    ),
    Property(
        "off_isocline",
        "Distance from zero mean",
        "The share of a filter's norm off its isocline, the plane of zero mean: 0 lies on it, 1 is a constant filter.",
        None,
        "log",
    ),
    Property("scale", "Scale of each filter", "What a filter is multiplied by: e^g, a gain, a norm's factor; the line is at 1.", 1, "linear"),
)


def charts_of_filters(layers: Sequence[Json]) -> FiltersView | None:
    if not layers:
        return None
    charts = []
    for each in _PROPERTIES:
        boxes = [_box(layer.get(each.key)) for layer in layers]
        if any(boxes):
            wide, narrow = (box_chart(boxes, width, each.reference, each.scale) for width in (1120, 358))
            charts.append(FilterChart(each.title, each.meaning, (wide, narrow)))
    return FiltersView(layers, tuple(charts), sum(int(layer.get("num_not_finite") or 0) for layer in layers))


_MORE_PROPERTIES = (
    Property("deflated", "Share of deflated filters", "How many of a layer's filters have a norm below the threshold in the table.", None, "linear"),
    Property("variance", "Variance in front of a norm", "The running variance that a layer's BatchNorm divides by.", 1, "log"),
    Property("gradient_norm", "Norm of the gradient", "Of each layer the mean over the epoch's steps, before training.clip.", None, "log"),
)


def development(diagnosed: Sequence[Json], num_epochs: int) -> tuple[FilterChart, ...]:
    """Each property from epoch to epoch: a box over the layers, each layer by its median."""
    layers_of = {record.get("epoch"): record.get("layers") or () for record in diagnosed}
    charts = []
    for each in (*_PROPERTIES, *_MORE_PROPERTIES):
        boxes = [_over_layers(layers_of.get(epoch, ()), each.key) for epoch in range(1, num_epochs + 1)]
        if any(any(box or ()) for box in boxes):  # a chart of nothing but zeros shows nothing
            wide, narrow = (box_chart(boxes, width, each.reference, each.scale) for width in (1120, 358))
            charts.append(FilterChart(each.title, each.meaning, (wide, narrow)))
    return tuple(charts)


def _over_layers(layers: Sequence[Json], key: str) -> Quantiles | None:
    values = [layer.get(key) for layer in layers]
    numbers = [number_in(value[2] if isinstance(value, Sequence) and len(value) == 5 else value) for value in values]
    return quantiles(np.asarray([number for number in numbers if number is not None], np.float64))


def _box(values: Sequence[object] | None) -> Quantiles | None:
    numbers = [number for value in values or () if (number := number_in(value)) is not None]
    return numbers if len(numbers) == 5 else None
