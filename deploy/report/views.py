"""The links and checks of verification.json as the report shows them.

An entry that contradicts its own figures is shown as failed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.compare.budget import share_used
from deploy.report.drawing import NOTHING, ChainPicture, Hop, figure, number_in, percent, short_number, tall_chain, wide_chain

Json = Mapping[str, Any]
Tone = Literal["bitwise", "budget", "tolerance", "failed", "absent"]
HEADS: dict[Tone, str] = {
    "bitwise": "passed, same bits",
    "budget": "passed, in budget",
    "tolerance": "passed, tolerance",
    "failed": "FAILED",
    "absent": "not run",
}
SIGNS: dict[Tone, str] = {"bitwise": "=", "budget": "≈", "tolerance": "~", "failed": "✕", "absent": NOTHING}
_WIDEST = 1400
"""The widest chain that is drawn from left to right. A wider one is only drawn top to bottom."""


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
    """The larger of maximum and RMS error as a share of its budget. None for the same bits."""

    @property
    def head(self) -> str:
        return HEADS[self.tone]

    @property
    def name(self) -> str:
        return f"{self.start} → {self.end}"

    @property
    def where(self) -> str:
        """Runtime and device, each once, unless the name of the end already contains them."""
        parts = [str(self.record.get(key) or "") for key in ("runtime", "device")]
        return ", ".join(part for part in dict.fromkeys(parts) if part and part not in self.end)

    @property
    def contradicts(self) -> bool:
        """Whether it claims to have passed but is shown as failed."""
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


def invariance_table(views: Sequence[CheckView]) -> InvarianceView:
    places = [(str(view.record.get("stage")), str(view.record.get("check"))) for view in views]
    found: dict[tuple[str, str], CheckView] = {}
    for place, view in zip(places, views, strict=True):
        if place not in found or view.tone == "failed":
            found[place] = view
    checks = tuple(dict.fromkeys(check for _, check in places))
    stages = dict.fromkeys(stage for stage, _ in places)
    return InvarianceView(checks, tuple((stage, tuple(found.get((stage, c)) for c in checks)) for stage in stages))


def link(record: Json, errors: Sequence[Json]) -> LinkView:
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


def check(record: Json) -> CheckView:
    return CheckView(_tone(record), record)


def _tone(record: Json, share: float | None = None) -> Tone:
    """The tone of an entry.

    It is passed if it says so, compared something, observed what was required, and has figures
    that match.
    """
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
    """A number that is missing or is none counts as the worst."""
    if not error or not budget:
        return None
    found, allowed = ((number_in(each.get("max")), number_in(each.get("rms"))) for each in (error, budget))
    worst_found = (math.inf if found[0] is None else found[0], math.inf if found[1] is None else found[1])
    return share_used(worst_found, (allowed[0] or 0.0, allowed[1] or 0.0))


def chains(links: Sequence[LinkView]) -> tuple[ChainPicture, ...]:
    hops = [Hop(link.start, link.end, link.where, link.head, _lines(link)) for link in links]
    wide = wide_chain(hops)
    return (wide, tall_chain(hops)) if wide.width <= _WIDEST else (tall_chain(hops),)


def _lines(link: LinkView) -> tuple[str, ...]:
    """The text at a line of the picture."""
    record = link.record
    if not record.get("samples"):
        return ("nothing compared",)
    lines = [f"{_short(record.get('max_ulp'))} ulp, abs {figure(record.get('max_abs'))}"]
    if link.tone == "bitwise":
        pass  # the same bits need no budget
    elif record.get("tolerance"):
        lines.append(f"allowed: {tolerance_words(record['tolerance'])}")
    elif record.get("budget"):
        lines.append(f"budget {figure(record['budget'].get('max'))}: {percent(link.share)}")
    elif record.get("required") == "budget":
        lines.append("no budget known")
    return (*lines, _top_one(record.get("top1_changes"), record.get("ties")))


def tolerance_words(tolerance: Json) -> str:
    """The tolerance that somebody chose, from verification.json."""
    parts = [(key, tolerance.get(key)) for key in ("max_ulp", "atol", "rtol")]
    return ", ".join(f"{key.replace('max_ulp', 'ulp')} {figure(value)}" for key, value in parts if value is not None)


def _top_one(changes: object, ties: object) -> str:
    if not changes:
        return "top-1: no change" if changes == 0 else "top-1: not counted"
    return f"top-1: {figure(ties)} ties" if changes == ties else f"top-1: {figure(changes)}, {figure(ties)} ties"


def _short(value: object) -> str:
    return short_number(value, 2) if isinstance(value, int) and value >= 10**7 else figure(value)
