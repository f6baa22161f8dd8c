"""A verdict for GitHub Actions: the summary of a step, and annotations, within the limits that GitHub sets.

Takes a verdict, returns text. Reads no environment and writes no file.
"""

from collections.abc import Iterator, Sequence

from deploy.verify.verdict import InvarianceVerdict, LinkVerdict, Verdict, reason_with_place, share, tightest, weak_outputs, weakness

LARGEST_SUMMARY = 1024 * 1024
"""Bytes of all summaries of a step; a longer one is not shown at all."""
MOST_ANNOTATIONS = 10
"""Errors of a step; what comes after is dropped without a word, so the last says how many there are."""
_LONGEST_MESSAGE = 4000
_WORDS = {"pass": "✅ the outputs are the same", "fail": "❌ the outputs are not the same", "incomplete": "⚠️ interrupted"}
_SIGNS = {"passed": "✅", "failed": "❌", "not run": "\N{EN DASH}"}


def summary(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> str:
    """Markdown: the verdict, a table of links, and what failed; `others` are names of what else failed, with reasons."""
    word, samples = _WORDS["fail" if others else verdict.word], verdict.samples
    lines = [f"### samegraph: {word}", "", f"{samples.count:,} samples: {_cell('; '.join(samples.how))}", ""]
    lines += ["| link | | required | observed | max ulp | max abs | error of budget |", "|---|---|---|---|--:|--:|--:|"]
    lines += [_row(link, verdict) for link in verdict.links]
    lines += ["", *(_cell(f"Note: {weakness(name, spread)}") for name, spread in weak_outputs(verdict).items())]
    lines += ["", *(f"- {_SIGNS['failed']} {_cell(place)}: {_cell(reason)}" for place, reason in _failures(verdict, others))]
    return _shortened("\n".join(lines).rstrip() + "\n")


def annotations(verdict: Verdict, others: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """Workflow commands, a line a failure."""
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
    """No text of a model makes a table, a link or a tag here."""
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
