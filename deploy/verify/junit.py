"""A verdict as a JUnit report: a test case a link and output, and a test case an invariance check.

Takes a verdict, returns XML. What did not run is skipped, never passed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from deploy.verify.verdict import InvarianceVerdict, LinkVerdict, Status, Verdict, failed_outputs, reason_with_place

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    suite: str
    name: str
    status: Status
    reason: str


def junit_xml(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> bytes:
    """The report; `others` are the names of what else failed, each with its reason."""
    cases = [*(case for link in verdict.links for case in _of_link(verdict, link)), *map(_of_check, verdict.invariance)]
    cases += [_Case("samegraph", name, "failed", reason) for name, reason in others]
    if verdict.interrupted:
        cases.append(_Case("samegraph", "all samples", "failed", "interrupted: samples are left that nobody compared"))
    root = ElementTree.Element("testsuites", {"name": "samegraph", **_counts(cases)})
    for name in dict.fromkeys(case.suite for case in cases):
        inside = [case for case in cases if case.suite == name]
        suite = ElementTree.SubElement(root, "testsuite", {"name": _text(name), **_counts(inside)})
        for case in inside:
            _write(suite, case)
    ElementTree.indent(root)
    return b"<?xml version='1.0' encoding='utf-8'?>\n" + ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _of_link(verdict: Verdict, link: LinkVerdict) -> Iterator[_Case]:
    """Where nothing could be compared there is no output, and still a case."""
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
    """What XML cannot hold is shown as a question mark."""
    return _NOT_IN_XML.sub("?", text)
