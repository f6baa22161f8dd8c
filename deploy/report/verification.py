"""A verdict and what goes with it: lines for the terminal, verification.json and report.html.

Takes what was measured elsewhere. Needs neither torch nor a runtime.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue

from deploy.certificate.certificate import Certificate
from deploy.report.page import report_html
from deploy.report.words import spoken_accuracies, spoken_counts
from deploy.verify.verdict import LinkVerdict, StageErrors, Verdict, failure_sentence, reason_with_place, tightest, weak_outputs, weakness
from export.bundle import CERTIFICATE, EXACT_MODEL, REPORT, VERIFICATION, json_bytes
from export.files import sha256_of, write_file


@dataclass(frozen=True)
class Verification:
    """A verdict, and what goes with it in the report."""

    verdict: Verdict
    metrics: tuple[dict[str, JsonValue], ...]
    filters: tuple[Mapping[str, object], ...]
    facts: Mapping[str, object]
    diagnosed: tuple[Mapping[str, object], ...] = ()
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """Pictures of the worst samples, as PNG files."""
    certificate: Certificate | None = None
    """The certificate of the exact file, if there is one. It was computed from that file alone."""
    notes: tuple[str, ...] = ()
    """What the reader must know about how it was made."""

    @property
    def passed(self) -> bool:
        return self.verdict.passed and (self.certificate is None or self.certificate.holds)

    @property
    def word(self) -> str:
        """The verdict in one word, as in verification.json."""
        return self.verdict.word if self.certificate is None or self.certificate.holds else "fail"

    @property
    def other_failures(self) -> tuple[tuple[str, str], ...]:
        """Failures that are not part of the verdict on outputs, with their reasons."""
        return () if self.certificate is None or self.certificate.holds else (("certificate", self.certificate.failure),)

    @property
    def failure(self) -> str | None:
        """The sentence that names what failed."""
        if self.certificate is not None and not self.certificate.holds:
            return f"{EXACT_MODEL}: {self.certificate.failure}"
        return failure_sentence(self.verdict) if self.verdict.word == "fail" else None

    @property
    def as_json(self) -> dict[str, JsonValue]:
        """The content of verification.json."""
        return {**self.verdict.to_json(), "verdict": self.word}

    @property
    def text(self) -> str:
        """One line per link and one per failed check, for the terminal."""
        return "\n".join(map(printable, self.lines))

    @property
    def lines(self) -> list[str]:
        counted = self.verdict.samples
        lines = [_link_line(link, tightest(self.verdict.errors, link.to)) for link in self.verdict.links]
        lines += [f"{check.check} of {check.stage}: FAILED: {check.reason}" for check in self.verdict.invariance if check.status == "failed"]
        lines += [] if self.certificate is None else [_certificate_line(self.certificate)]
        lines += [*_notes(self.verdict), *(f"note: {note}" for note in self.notes)]
        verdict = {"pass": "the outputs are the same", "fail": "the outputs are NOT the same", "incomplete": "INCOMPLETE"}[self.word]
        return [*lines, f"{verdict}, on {counted.count:,} samples: {', '.join(how.partition(':')[0] for how in counted.how)}"]

    def write(self, folder: Path) -> None:
        """Write verification.json, certificate.json and report.html."""
        content = self.as_json
        written = json_bytes(content)
        write_file(folder / VERIFICATION, written)
        if self.certificate is not None:
            write_file(folder / CERTIFICATE, json_bytes(self.certificate.to_json()))
        certificate = None if self.certificate is None else self.certificate.to_json()
        page = report_html(
            content,
            digest=sha256_of(written),
            metrics=self.metrics,
            filters=self.filters,
            facts=self.facts,
            diagnosed=self.diagnosed,
            certificate=certificate,
            pictures=self.pictures,
        )
        write_file(folder / REPORT, page.encode(errors="replace"))


def printable(line: str) -> str:
    """One line of plain text.

    Names in a file may hold line breaks, or codes that move a terminal or command a workflow.
    """
    return "".join(sign if sign.isprintable() else " " for sign in line)


def _link_line(link: LinkVerdict, errors: StageErrors | None) -> str:
    ties = f"; {link.top1_changes} top-1 changes, {link.ties} of them ties" if link.top1_changes else ""
    return " ".join(f"{link.from_} -> {link.to}: {_how_it_went(link, errors)}{ties}".split())


def _how_it_went(link: LinkVerdict, errors: StageErrors | None) -> str:
    if link.status != "passed":
        return f"{link.status.upper() if link.status == 'failed' else link.status}: {reason_with_place(link)}"
    if link.observed == "bitwise":
        return "passed, the same bits"
    if link.tolerance is not None:
        return f"passed, within {link.tolerance}: max_ulp {link.max_ulp}, max_abs {link.max_abs:.3g}"
    if errors is None or errors.budget is None:
        return "passed"
    return f"passed, error against float64 {errors.max:.3g} of {errors.budget.max:.3g} allowed"


def _notes(verdict: Verdict) -> list[str]:
    """What is deployed as it was trained, and since when training matched what is deployed."""
    kept, frozen = verdict.not_foldable, verdict.frozen_statistics
    notes = [f"not foldable, deployed as trained: {spoken_counts(part.what for part in kept)}"] if kept else []
    if frozen is not None:
        notes.append(f"without batch statistics after step {frozen.since_step} of {frozen.last_step}; {spoken_accuracies(asdict(frozen))}")
    return notes + [f"note: {weakness(name, spread)}" for name, spread in weak_outputs(verdict).items()]


def _certificate_line(certificate: Certificate) -> str:
    if not certificate.holds or certificate.tightest is None:
        return certificate.failure
    room = certificate.tightest.headroom_bits
    return f"certificate: no sum depends on its order, {room:.2f} bits to spare in the tightest of {len(certificate.layers)} layers"
