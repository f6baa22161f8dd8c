"""report.html: the verdict, to look at. One file that asks nothing of a network, rebuilt from the files of a run.

Takes the content of verification.json and metrics.jsonl, figures of the filters and facts, all of them plain JSON.
Measures nothing and decides nothing, but never shows as passed what its own figures contradict.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from numpy.typing import NDArray

from deploy.verify.differences import Bar, bar_on, histogram_of, inner_errors, number_in, worst_of
from deploy.verify.drawing import (
    Axis,
    BoxChart,
    ChainPicture,
    CurveChart,
    Hop,
    Quantiles,
    Scale,
    box_chart,
    curve_chart,
    log_axis,
    short_number,
    tall_chain,
    wide_chain,
)
from deploy.verify.verdict import ENOUGH, weakness

Json = Mapping[str, Any]
Tone = Literal["bitwise", "budget", "tolerance", "failed", "absent"]

_HEADS: dict[Tone, str] = {
    "bitwise": "passed, same bits",
    "budget": "passed, in budget",
    "tolerance": "passed, tolerance",
    "failed": "FAILED",
    "absent": "not run",
}
_NOTHING = "\N{EN DASH}"
_SIGNS: dict[Tone, str] = {"bitwise": "=", "budget": "≈", "tolerance": "~", "failed": "✕", "absent": _NOTHING}
_WIDEST_CHAIN = 1400
_NUM_TIES_SHOWN = 50
_LONGEST_REASON = 240
_PRECISION = "precision"
"""The name in training_only of what is no part of the graph: how the training steps computed."""
_OF_THE_BATCH = ("batch statistics", "channel means of")
"""How the words begin for a part that made a sample's training outputs depend on its batch."""


def filter_figures(name: str, kind: str, weight: NDArray[Any], scale: NDArray[Any] | None) -> dict[str, Any]:
    """What the report draws of one layer: quantiles over its filters, however many there are.

    `weight` is the trained direction V (or plain weight), outputs first; `scale` the e^g of each filter. The mean is
    that of a slice (a filter's kernel for one input channel); where a kernel is one point, that of the whole filter.
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
    """Minimum, lower quartile, median, upper quartile, maximum of the finite values; None where there are none."""
    values = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])] if values.size else None


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
    links = [_link(entry, errors) for entry in verification.get("links") or ()]
    invariance = [_check(entry) for entry in verification.get("invariance") or ()]
    template = _environment().get_template("report.html.jinja")
    page = template.render(
        summary=_summary(verification, links, invariance, of_a_pair=_is_of_a_pair(facts or {})),
        links=links,
        chains=_chains(links),
        errors=_error_bars(errors),
        inside=[view for link in links if (view := inner_errors(link.name, link.record)) is not None],
        histograms=[histogram_of(link.name, link.record) for link in links if link.record.get("samples")],
        worst=[(link.name, worst_of(link.record, pictures or {})) for link in links if link.record.get("worst")],
        invariance=_invariance_table(invariance),
        training=_training(metrics),
        filters=_filters(filters),
        development=_development(diagnosed, len(metrics)),
        facts=dict(facts or {}),
        certificate=certificate,
        verification=verification,
        digest=digest,
        signs=_SIGNS,
        heads=_HEADS,
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
    environment.filters["percent"] = _percent
    return environment


# ---- numbers --------------------------------------------------------------------------------------------------------


def figure(value: object) -> str:
    """A number (or whatever stands in its place) in few signs; integers in full."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    number = number_in(value)
    if number is None:
        return str(value)
    return short_number(number, 3)


def _percent(share: float | None) -> str:
    if share is None:
        return _NOTHING
    if share == math.inf:
        return "> 100 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{share:,.2f} times" if share < 10 else f"{share:,.0f} times"


# ---- links and checks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkView:
    """A link of verification.json as the page shows it."""

    start: str
    end: str
    tone: Tone
    record: Json
    output_names: tuple[str, ...]
    error: Json
    share: float | None
    """The larger of maximum and RMS error as a share of its budget; None for the same bits, which need none."""

    @property
    def head(self) -> str:
        return _HEADS[self.tone]

    @property
    def name(self) -> str:
        return f"{self.start} → {self.end}"

    @property
    def where(self) -> str:
        """Runtime and device, each once, where the name of the end does not hold them already."""
        parts = [str(self.record.get(key) or "") for key in ("runtime", "device")]
        return ", ".join(part for part in dict.fromkeys(parts) if part and part not in self.end)

    @property
    def contradicts(self) -> bool:
        """Whether it is called passed and shown as failed."""
        return self.tone == "failed" and self.record.get("status") == "passed"


@dataclass(frozen=True)
class CheckView:
    """An entry of the invariance list."""

    tone: Tone
    record: Json


@dataclass(frozen=True)
class InvarianceView:
    """The invariance list as a table: a row for each stage, a column for each check."""

    checks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[CheckView | None, ...]], ...]


def _invariance_table(views: Sequence[CheckView]) -> InvarianceView:
    places = [(str(view.record.get("stage")), str(view.record.get("check"))) for view in views]
    found: dict[tuple[str, str], CheckView] = {}
    for place, view in zip(places, views, strict=True):
        if place not in found or view.tone == "failed":
            found[place] = view
    checks = tuple(dict.fromkeys(check for _, check in places))
    stages = dict.fromkeys(stage for stage, _ in places)
    return InvarianceView(checks, tuple((stage, tuple(found.get((stage, c)) for c in checks)) for stage in stages))


def _link(record: Json, errors: Sequence[Json]) -> LinkView:
    end = str(record.get("to"))
    of_the_end = [entry for entry in errors if str(entry["stage"]) == end]
    error = max(of_the_end, key=lambda entry: _share(entry, entry.get("budget")) or 0.0, default={})
    share = _share(error, record.get("budget"))
    tone = _tone(record, share)
    outputs = record.get("outputs") or ()
    return LinkView(
        start=str(record.get("from")),
        end=end,
        tone=tone,
        record=record,
        output_names=tuple(str(each["name"] if isinstance(each, Mapping) else each) for each in outputs),
        error=error,
        share=None if tone == "bitwise" else share,
    )


def _check(record: Json) -> CheckView:
    return CheckView(_tone(record), record)


def _tone(record: Json, share: float | None = None) -> Tone:
    """Passed is what says so, compared something, was observed to be what was required, and has figures to match."""
    status, observed = record.get("status"), record.get("observed")
    if status == "not run":
        return "absent"
    if status != "passed" or not record.get("samples"):
        return "failed"
    if observed == "bitwise":
        return "failed" if record.get("max_ulp") else "bitwise"
    if observed == record.get("required") == "tolerance":
        return "tolerance"
    enough = observed == "budget" and record.get("required") == "budget"
    apart = (record.get("top1_changes") or 0) > (record.get("ties") or 0)
    return "budget" if enough and not apart and (share or 0) <= 1 else "failed"


def _share(error: Json, budget: Json | None) -> float | None:
    if not error or not budget:
        return None
    return max(_part(number_in(error.get(key)), number_in(budget.get(key))) for key in ("max", "rms"))


def _part(used: float | None, allowed: float | None) -> float:
    """How much of what is allowed is used; infinite where there is no number or nothing is allowed."""
    if used == 0:
        return 0.0
    return used / allowed if used and allowed else math.inf


def _chains(links: Sequence[LinkView]) -> tuple[ChainPicture, ...]:
    hops = [Hop(link.start, link.end, link.where, link.head, _lines(link)) for link in links]
    wide = wide_chain(hops)
    return (wide, tall_chain(hops)) if wide.width <= _WIDEST_CHAIN else (tall_chain(hops),)


def _lines(link: LinkView) -> tuple[str, ...]:
    """What stands at a line of the picture."""
    record = link.record
    if not record.get("samples"):
        return ("nothing compared",)
    lines = [f"{_short(record.get('max_ulp'))} ulp, abs {figure(record.get('max_abs'))}"]
    if link.tone == "bitwise":
        pass  # the same bits need no budget
    elif record.get("tolerance"):
        lines.append(f"allowed: {tolerance_words(record['tolerance'])}")
    elif record.get("budget"):
        lines.append(f"budget {figure(record['budget'].get('max'))}: {_percent(link.share)}")
    elif record.get("required") == "budget":
        lines.append("no budget known")
    return (*lines, _top_one(record.get("top1_changes"), record.get("ties")))


def tolerance_words(tolerance: Json) -> str:
    """What somebody chose to allow, from verification.json."""
    parts = [(key, tolerance.get(key)) for key in ("max_ulp", "atol", "rtol")]
    return ", ".join(f"{key.replace('max_ulp', 'ulp')} {figure(value)}" for key, value in parts if value is not None)


def _top_one(changes: object, ties: object) -> str:
    if not changes:
        return "top-1: no change" if changes == 0 else "top-1: not counted"
    return f"top-1: {figure(ties)} ties" if changes == ties else f"top-1: {figure(changes)}, {figure(ties)} ties"


def _short(value: object) -> str:
    return short_number(value, 2) if isinstance(value, int) and value >= 10**7 else figure(value)


# ---- the verdict in words -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The verdict as sentences, and the figures beside it."""

    passed: bool
    word: str
    title: str
    sentences: tuple[str, ...]
    tiles: tuple[tuple[str, str, Tone], ...]


def _is_of_a_pair(facts: Json) -> bool:
    """Two forms of a model that somebody brought, of whose training nothing is known."""
    return {"reference", "candidate"} <= facts.keys()


def _summary(verification: Json, links: Sequence[LinkView], invariance: Sequence[CheckView], *, of_a_pair: bool) -> Summary:
    verdict = verification.get("verdict")
    ran = [link for link in links if link.tone != "absent"]
    failed = [link for link in ran if link.tone == "failed"]
    held = len(ran) - len(failed)
    tones = [*(link.tone for link in links), *(check.tone for check in invariance)]
    passed = verdict == "pass" and held > 0 and "failed" not in tones
    title = _title_of_a_pass(tones, of_a_pair=of_a_pair) if passed else "The outputs are not shown to be the same."
    if failed:
        title = "The outputs are not the same."
    elif verdict == "incomplete":
        title = "The comparison was interrupted: samples are left that nobody compared."
    sentences = [
        *(_training_only(verification) if passed and not of_a_pair else ()),
        *_not_foldable(verification.get("not_foldable")),
        *_held(ran, held),
        *_failures(failed, invariance),
        *_absent(links),
        *_weak(ran, verification.get("errors")),
        *_contradiction(verdict, passed, links),
    ]
    word = "PASS" if passed else "INCOMPLETE" if verdict == "incomplete" and not failed else "FAIL"
    return Summary(passed, word, title, tuple(sentences), _tiles(links, ran, held))


def _title_of_a_pass(tones: Sequence[Tone], *, of_a_pair: bool) -> str:
    if "tolerance" in tones:
        return "The outputs are as near as a human said they must be."
    return "Both are the same function." if of_a_pair else "What was validated is what will run."


def _training_only(verification: Json) -> list[str]:
    """What training had and deployment has not, and since when it had it no more; nothing is said where it was not recorded."""
    listed: Sequence[Json] | None = verification.get("training_only")
    if listed is None:
        return []
    computed = [str(part.get("what")) for part in listed if part.get("name") == _PRECISION]
    parts = [part for part in listed if part.get("name") != _PRECISION]
    to_the_end = [str(part.get("what")) for part in parts if part.get("off_since_step") is None]
    sentences = [*_acting(to_the_end), *_frozen(verification, parts, to_the_end)] or ["The training graph had nothing that the deployed one lacks."]
    return [*sentences, *(f"{what[:1].upper()}{what[1:]}." for what in computed)]


def _acting(parts: Sequence[str]) -> list[str]:
    if not parts:
        return []
    number = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
    another = ", so its training graph was another than the deployed one" if any(what.startswith(_OF_THE_BATCH) for what in parts) else ""
    return [f"Training also had {number} that deployment has not, switched off for this comparison: {spoken_counts(parts)}{another}."]


def _frozen(verification: Json, parts: Sequence[Json], to_the_end: Sequence[str]) -> list[str]:
    """From which step on the two graphs were the same, and what that did to the accuracy."""
    frozen: Json | None = verification.get("frozen_statistics")
    off = [str(part.get("what")) for part in parts if part.get("off_since_step") is not None]
    if not frozen or not off:
        return []
    but = " but for what is named above" if to_the_end else ""
    since, last = figure(frozen.get("since_step")), figure(frozen.get("last_step"))
    return [
        f"After step {since} of {last} the training graph and the deployed graph were identical{but}: {spoken_counts(off)} had been recomputed "
        f"over the whole training set and frozen; {spoken_accuracies(frozen)}."
    ]


def spoken_accuracies(frozen: Json) -> str:
    """What freezing the statistics cost or gained."""
    moments = {"before": "accuracy_before", "right after recomputing": "accuracy_recomputed", "at the end": "accuracy_at_end"}
    known = {when: number_in(frozen.get(key)) for when, key in moments.items()}
    return "test accuracy " + ", ".join(f"{_NOTHING if share is None else f'{share:.2%}'} {when}" for when, share in known.items())


def _not_foldable(listed: Sequence[Json] | None) -> list[str]:
    """What is deployed as it was trained, because no plain layer computes it."""
    counted = spoken_counts(str(part.get("what")) for part in listed or ())
    return [f"Not foldable: {counted}. These layers are deployed as they were trained, with their own operations in the file."] if counted else []


def spoken_counts(words: Iterable[str]) -> str:
    """How often each of them occurs, in the order in which they come."""
    return "; ".join(f"{count} x {what}" for what, count in Counter(words).items())


def _held(ran: Sequence[LinkView], held: int) -> list[str]:
    if not ran:
        return ["Nothing was compared, and a comparison that compared nothing is a failure."]
    tones = [link.tone for link in ran]
    counts = sorted({int(link.record.get("samples") or 0) for link in ran})
    samples = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    kinds = [
        (tones.count("bitwise"), "to the last bit"),
        (tones.count("budget"), "within the derived budget"),
        (tones.count("tolerance"), "within a tolerance that a human chose"),
    ]
    how = " and ".join(f"{count} {text}" for count, text in kinds if count)
    links = "link was" if len(ran) == 1 else "links were"
    which = "all hold" if held == len(ran) else f"{held} of them {'holds' if held == 1 else 'hold'}"
    hold = f"{which}: {how}" if held else "none of them holds"
    return [f"{len(ran)} {links} compared on {samples} samples; {hold}."]


def _failures(failed: Sequence[LinkView], invariance: Sequence[CheckView]) -> list[str]:
    sentences = [f"{link.name} failed: {_reason(link.record)}." for link in failed]
    checks = [check.record for check in invariance if check.tone == "failed"]
    return sentences + [f"{record.get('stage')} failed the check {record.get('check')}: {_reason(record)}." for record in checks]


def _absent(links: Sequence[LinkView]) -> list[str]:
    absent = [f"{link.name} ({_reason(link.record)})" for link in links if link.tone == "absent"]
    return [f"Not run, and so not part of this verdict: {'; '.join(absent)}."] if absent else []


def _weak(ran: Sequence[LinkView], errors: object) -> list[str]:
    """Outputs by which there is little to tell a fault; see `weak_outputs` of the verdict."""
    known = [each for each in errors if isinstance(each, Mapping)] if isinstance(errors, Sequence) else []
    allowed = {(each.get("stage"), each.get("output")): number_in((each.get("budget") or {}).get("max")) for each in known}
    found: dict[str, float] = {}
    for link in ran:
        for output in link.record.get("outputs") or ():
            least = ENOUGH * (allowed.get((link.record.get("to"), output.get("name"))) or 0.0)
            spread = number_in(output.get("spread"))
            if spread is not None and spread <= least and int(output.get("num_samples") or 0) > 1:
                found[str(output.get("name"))] = spread
    return [f"{weakness(name, spread)}." for name, spread in found.items()]


def _contradiction(verdict: object, passed: bool, links: Sequence[LinkView]) -> list[str]:
    if verdict not in ("pass", "fail", "incomplete"):
        return ["The data holds no verdict of “pass”, “fail” or “incomplete”."]
    if verdict == "pass" and not passed:
        called = ", ".join(link.name for link in links if link.contradicts)
        return ["The data says “pass”, and its own figures contradict it" + (f" at {called}." if called else ".")]
    return []


def _reason(record: Json) -> str:
    reason = textwrap.shorten(str(record.get("reason") or "no reason was given"), _LONGEST_REASON, placeholder=" (and so on)")
    return reason.rstrip(".")


def _tiles(links: Sequence[LinkView], ran: Sequence[LinkView], held: int) -> tuple[tuple[str, str, Tone], ...]:
    shares = [link.share for link in ran if link.share is not None]
    changes = sum(int(link.record.get("top1_changes") or 0) for link in ran)
    ties = sum(int(link.record.get("ties") or 0) for link in ran)
    bitwise = sum(link.tone == "bitwise" for link in ran)
    worst = max(shares, default=None)
    return (
        (f"{held} of {len(ran)}", "links that ran hold", "bitwise" if ran and held == len(ran) else "failed"),
        (str(bitwise), "with the same bits", "bitwise" if bitwise else "absent"),
        (
            _percent(worst),
            "of the budget used at most",
            "absent" if worst is None else "budget" if worst <= 1 else "failed",
        ),
        (f"{changes:,}", f"top-1 changes, {ties:,} of them ties", "budget" if changes == ties else "failed"),
        (str(len(links) - len(ran)), "links not run", "absent"),
    )


# ---- errors against float64 -----------------------------------------------------------------------------------------


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


# ---- training -------------------------------------------------------------------------------------------------------


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


def _training(metrics: Sequence[Json]) -> TrainingView | None:
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
    return TrainingView(_run(metrics), tuple(charts), tuple(gaps))


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


# ---- filters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilterChart:
    """One property of all layers, drawn for a wide and for a narrow page."""

    title: str
    meaning: str
    charts: tuple[BoxChart, BoxChart]


@dataclass(frozen=True)
class FiltersView:
    """The layers in the order of the graph, and their pictures."""

    layers: Sequence[Json]
    charts: tuple[FilterChart, ...]
    num_not_finite: int


@dataclass(frozen=True)
class Property:
    """Something of every filter that is drawn by layer."""

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


def _filters(layers: Sequence[Json]) -> FiltersView | None:
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


def _development(diagnosed: Sequence[Json], num_epochs: int) -> tuple[FilterChart, ...]:
    """Each property from epoch to epoch: a box over the layers, each layer with its median."""
    layers_of = {record.get("epoch"): record.get("layers") or () for record in diagnosed}
    charts = []
    for each in (*_PROPERTIES, *_MORE_PROPERTIES):
        boxes = [_over_layers(layers_of.get(epoch, ()), each.key) for epoch in range(1, num_epochs + 1)]
        if any(any(box or ()) for box in boxes):  # zeros throughout are no picture
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
