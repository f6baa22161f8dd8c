"""A verdict for CI: a JUnit report, the summary of a GitHub step, and annotations.

Takes a verdict, returns text. Reads no environment and writes no file. What did not run is marked
as skipped, never as passed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from deploy.verify.verdict import (
    InvarianceVerdict,
    LinkVerdict,
    Status,
    Verdict,
    failed_outputs,
    reason_with_place,
    share,
    tightest,
    weak_outputs,
    weakness,
)

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    suite: str
    name: str
    status: Status
    reason: str


def junit_xml(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> bytes:
    """The report. `others` are the names of other failures, each with its reason."""
    cases = [*(case for link in verdict.links for case in _of_link(verdict, link)), *map(_of_check, verdict.invariance)]
    cases += [_Case("samegraph", name, "failed", reason) for name, reason in others]
    if verdict.interrupted:
        cases.append(_Case("samegraph", "all samples", "failed", "interrupted: some samples were not compared"))
    root = ElementTree.Element("testsuites", {"name": "samegraph", **_counts(cases)})
    for name in dict.fromkeys(case.suite for case in cases):
        inside = [case for case in cases if case.suite == name]
        suite = ElementTree.SubElement(root, "testsuite", {"name": _text(name), **_counts(inside)})
        for case in inside:
            _write(suite, case)
    ElementTree.indent(root)
    return b"<?xml version='1.0' encoding='utf-8'?>\n" + ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _of_link(verdict: Verdict, link: LinkVerdict) -> Iterator[_Case]:
    """One case per output. If nothing could be compared there is no output, but still one case."""
    suite = f"{link.from_} -> {link.to}"
    reason, guilty = reason_with_place(link), failed_outputs(verdict, link) if link.status == "failed" else []
    for output in link.outputs:
        yield _Case(suite, output.name, "passed" if guilty and output.name not in guilty else link.status, reason)
    if not link.outputs:
        yield _Case(suite, "outputs", link.status, reason)


def _of_check(check: InvarianceVerdict) -> _Case:
    return _Case(f"invariance of {check.stage}", check.check, check.status, check.reason)


def _write(suite: ElementTree.Element, case: _Case) -> None:
    element = ElementTree.SubElement(suite, "testcase", classname=_text(case.suite), name=_text(case.name))
    if case.status == "failed":
        ElementTree.SubElement(element, "failure", message=_text(case.reason)).text = _text(case.reason)
    elif case.status == "not run":
        ElementTree.SubElement(element, "skipped", message=_text(case.reason))


def _counts(cases: list[_Case]) -> dict[str, str]:
    numbers: dict[str, int] = {"tests": len(cases), "failures": _number(cases, "failed"), "skipped": _number(cases, "not run"), "errors": 0}
    return {name: str(number) for name, number in numbers.items()}


def _number(cases: list[_Case], status: Status) -> int:
    return sum(case.status == status for case in cases)


def _text(text: str) -> str:
    """The text, with a question mark for whatever XML cannot hold."""
    return _NOT_IN_XML.sub("?", text)


LARGEST_SUMMARY = 1024 * 1024
"""The most bytes of all summaries of a step. A longer summary is not shown at all."""
MOST_ANNOTATIONS = 10
"""The most errors of a step. GitHub drops any more in silence, so the last one counts the rest."""
_LONGEST_MESSAGE = 4000
_WORDS = {"pass": "✅ the outputs are the same", "fail": "❌ the outputs are not the same", "incomplete": "⚠️ interrupted"}
_SIGNS = {"passed": "✅", "failed": "❌", "not run": "\N{EN DASH}"}


def summary(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> str:
    """The verdict in Markdown: a table of links, and what failed.

    `others` are the names of other failures, each with its reason.
    """
    word, samples = _WORDS["fail" if others else verdict.word], verdict.samples
    lines = [f"### samegraph: {word}", "", f"{samples.count:,} samples: {_cell('; '.join(samples.how))}", ""]
    lines += ["| link | | required | observed | max ulp | max abs | error of budget |", "|---|---|---|---|--:|--:|--:|"]
    lines += [_row(link, verdict) for link in verdict.links]
    lines += ["", *(_cell(f"Note: {weakness(name, spread)}") for name, spread in weak_outputs(verdict).items())]
    lines += ["", *(f"- {_SIGNS['failed']} {_cell(place)}: {_cell(reason)}" for place, reason in _failures(verdict, others))]
    return _shortened("\n".join(lines).rstrip() + "\n")


def annotations(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """Workflow commands, one line per failure."""
    failed = _failures(verdict, others)
    kept = failed if len(failed) <= MOST_ANNOTATIONS else failed[: MOST_ANNOTATIONS - 1]
    for place, reason in kept:
        yield f"::error title={_property(place)}::{_message(reason)}"
    if len(kept) < len(failed):
        yield f"::error title=samegraph::{len(failed) - len(kept)} more failed, see the summary"


def _failures(verdict: Verdict, others: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*((_place(each), reason_with_place(each)) for each in verdict.failed), *others]


def _row(link: LinkVerdict, verdict: Verdict) -> str:
    error = tightest(verdict.errors, link.to)
    used = "" if error is None or error.budget is None else f"{share(error):.2f}"
    if link.tolerance is not None:
        used = str(link.tolerance)
    cells = [
        _place(link),
        f"{_SIGNS[link.status]} {link.status}",
        link.required,
        link.observed or "",
        "" if link.max_ulp is None else str(link.max_ulp),
        "" if link.max_abs is None else f"{link.max_abs:.3g}",
        used,
    ]
    return f"| {' | '.join(map(_cell, cells))} |"


def _place(each: LinkVerdict | InvarianceVerdict) -> str:
    return f"{each.from_} → {each.to}" if isinstance(each, LinkVerdict) else f"{each.check} of {each.stage}"


def _cell(text: str) -> str:
    """Text of a model, escaped so that it makes no table, link or tag."""
    for sign in "\\`*_{}[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _shortened(text: str) -> str:
    if len(text.encode()) <= LARGEST_SUMMARY:
        return text
    end = "\n… and more, which is too long for a summary\n"
    return text.encode()[: LARGEST_SUMMARY - len(end.encode())].decode(errors="ignore") + end


def _message(text: str) -> str:
    text = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " …"
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
