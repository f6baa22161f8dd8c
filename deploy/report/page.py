"""The page report.html: a verdict and what goes with it, through templates that hold no logic.

Takes plain JSON; returns HTML that loads nothing from outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from deploy.report.differences import Bar, bar_on, histogram_of, inner_errors, worst_of
from deploy.report.drawing import Axis, CurveChart, curve_chart, figure, log_axis, number_in, percent
from deploy.report.filters import charts_of_filters, development
from deploy.report.views import HEADS, SIGNS, chains, check, invariance_table, link, tolerance_words
from deploy.report.words import is_of_a_pair, summary

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


_NUM_TIES_SHOWN = 50


def report_html(
    verification: Json,
    *,
    digest: str | None = None,
    metrics: Sequence[Json] = (),
    filters: Sequence[Json] = (),
    facts: Json | None = None,
    diagnosed: Sequence[Json] = (),
    certificate: Json | None = None,
    pictures: Mapping[int, bytes] | None = None,
) -> str:
    """The report. A sentence says so where something is empty or missing.

    `digest` is the hash of verification.json, by which the page says which verification it belongs
    to. `diagnosed` holds the figures of all layers after an epoch, `certificate` the content of
    certificate.json. `pictures` are PNG files of samples.
    """
    errors = list(verification.get("errors") or ())
    links = [link(entry, errors) for entry in verification.get("links") or ()]
    invariance = [check(entry) for entry in verification.get("invariance") or ()]
    template = _environment().get_template("report.html.jinja")
    page = template.render(
        summary=summary(verification, links, invariance, of_a_pair=is_of_a_pair(facts or {})),
        links=links,
        chains=chains(links),
        errors=_error_bars(errors),
        inside=[view for link in links if (view := inner_errors(link.name, link.record)) is not None],
        histograms=[histogram_of(link.name, link.record) for link in links if link.record.get("samples")],
        worst=[(link.name, worst_of(link.record, pictures or {})) for link in links if link.record.get("worst")],
        invariance=invariance_table(invariance),
        training=training(metrics),
        filters=charts_of_filters(filters),
        development=development(diagnosed, len(metrics)),
        facts=dict(facts or {}),
        certificate=certificate,
        verification=verification,
        digest=digest,
        signs=SIGNS,
        heads=HEADS,
        tolerance_words=tolerance_words,
        most_ties=_NUM_TIES_SHOWN,
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold half a surrogate pair, but a file may not


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["percent"] = percent
    return environment


@dataclass(frozen=True)
class ErrorBars:
    """The stages' errors side by side."""

    low: float
    high: float
    rows: tuple[tuple[str, Bar, Bar], ...]
    samples: int


def _error_bars(errors: Sequence[Json]) -> ErrorBars | None:
    if not errors:
        return None
    records = [record for entry in errors for record in (entry, entry.get("budget") or {})]
    axis = log_axis([number_in(record.get(key)) for record in records for key in ("max", "rms")], 2, 100)
    several = len({str(entry.get("output")) for entry in errors}) > 1
    names = [f"{entry['stage']}, {entry.get('output')}" if several else str(entry["stage"]) for entry in errors]
    rows = tuple((name, _bar_of(axis, entry, "max"), _bar_of(axis, entry, "rms")) for name, entry in zip(names, errors, strict=True))
    return ErrorBars(axis.low, axis.high, rows, max(int(entry.get("samples") or 0) for entry in errors))


def _bar_of(axis: Axis, entry: Json, key: str) -> Bar:
    return bar_on(axis, entry.get(key), (entry.get("budget") or {}).get(key))
