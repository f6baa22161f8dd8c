"""report.html: the verdict, to look at. One file that asks nothing of a network, rebuilt from the files of a run.

Takes the content of verification.json and metrics.jsonl, figures of the filters and facts, all of them plain JSON.
Measures nothing and decides nothing, but never shows as passed what its own figures contradict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from deploy.verify.report.differences import Bar, bar_on, histogram_of, inner_errors, worst_of
from deploy.verify.report.drawing import Axis, log_axis
from deploy.verify.report.figures import figure, number_in, percent
from deploy.verify.report.filters import charts_of_filters, development
from deploy.verify.report.links import HEADS, SIGNS, Json, chains, check, invariance_table, link, tolerance_words
from deploy.verify.report.training import training
from deploy.verify.report.words import is_of_a_pair, summary

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
    """The report. What is empty or missing is said in a sentence. `digest` is the hash of verification.json, so that each can be told
    from one that belongs to another; `diagnosed` holds the figures of all layers after an epoch,
    `certificate` what certificate.json holds, `pictures` are PNG files of samples.
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
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold half a surrogate pair, a file may not


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
