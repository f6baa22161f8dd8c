"""A run's training as the report shows it: a sentence, curves over the epochs, and what was not finite. Takes the records of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.verify.report.drawing import CurveChart, curve_chart
from deploy.verify.report.figures import figure, number_in

Json = Mapping[str, Any]


@dataclass(frozen=True)
class CurvesView:
    """A chart of one or two curves over the epochs."""

    title: str
    chart: CurveChart
    labels: tuple[tuple[str, str], ...]
    """The name of each curve and its last value."""


@dataclass(frozen=True)
class TrainingView:
    """The run in one sentence, its curves, and what was not finite."""

    sentence: str
    charts: tuple[CurvesView, ...]
    gaps: tuple[str, ...]


_CURVES = (
    ("Loss", {"train": "train_loss", "test": "test_loss"}),
    ("Accuracy", {"train": "train_accuracy", "test": "test_accuracy"}),
    ("Learning rate", {"learning rate": "lr"}),
    ("Penalty", {"penalty": "penalty"}),
)


def training(metrics: Sequence[Json]) -> TrainingView | None:
    if not metrics:
        return None
    epochs = [float(record.get("epoch", place)) for place, record in enumerate(metrics, start=1)]
    charts = [_curves(title, keys, epochs, metrics) for title, keys in _CURVES if any(key in record for key in keys.values() for record in metrics)]
    gaps = [
        f"epoch {figure(record.get('epoch'))}: {key} is {'missing' if record[key] is None else figure(record[key])}"
        for record in metrics
        for _, keys in _CURVES
        for key in keys.values()
        if key in record and number_in(record[key]) is None
    ]
    if all(epoch == 0 for epoch in epochs):
        return TrainingView(_as_given(metrics), (), tuple(gaps))
    return TrainingView(_run(metrics), tuple(charts), tuple(gaps))


def _as_given(metrics: Sequence[Json]) -> str:
    accuracies = _known(metrics, "test_accuracy")
    measured = f"; its test accuracy as it was given is {100 * accuracies[-1]:.2f} %" if accuracies else ""
    return f"The network was trained elsewhere{measured}."


def _curves(title: str, keys: Mapping[str, str], epochs: Sequence[float], metrics: Sequence[Json]) -> CurvesView:
    series = [[number_in(record.get(key)) for record in metrics] for key in keys.values()]
    labels = tuple((label, figure(metrics[-1].get(key))) for label, key in keys.items())
    return CurvesView(title, curve_chart(epochs, series), labels)


def _run(metrics: Sequence[Json]) -> str:
    epochs = f"{len(metrics)} epoch" + ("s" if len(metrics) > 1 else "")
    parts = [f"{epochs} in {_duration(sum(_known(metrics, 'seconds')))} of training steps"]
    if rates := _known(metrics, "images_per_second"):
        parts.append(f"{sorted(rates)[len(rates) // 2]:,.0f} images per second in the median epoch")
    if peaks := _known(metrics, "peak_memory_bytes"):
        parts.append(f"{max(peaks) / 2**20:,.0f} MiB of memory at the peak")
    tested = [record for record in metrics if number_in(record.get("test_accuracy")) is not None]
    if tested:
        best = max(tested, key=lambda record: float(record["test_accuracy"]))
        parts.append(f"best test accuracy {100 * best['test_accuracy']:.2f} % (epoch {figure(best.get('epoch'))})")
    return "; ".join(parts) + ". The figure beside a curve is that of the last epoch."


def _known(metrics: Sequence[Json], key: str) -> list[float]:
    return [number for record in metrics if (number := number_in(record.get(key))) is not None]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if not hours else ""]
    return " ".join(part for part in parts if part) if seconds >= 10 else f"{seconds:.2g} s"
