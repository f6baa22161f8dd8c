"""Runs a verification and publishes its verdict: a folder with its report, a JUnit file, GitHub.

Takes a request or what runs it. If the disk refuses to write, the verdict is still reported.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deploy.progress import Console, Outcome
from deploy.report.changes import Json, changes, read_verification
from deploy.report.ci import annotations, junit_xml, summary
from deploy.report.differences import pictures_of
from deploy.report.verification import Verification, printable
from deploy.verify.pair import compare_pair
from deploy.verify.request import PairRequest
from export.bundle import REPORT
from export.errors import UsageError
from export.files import make_folder, write_file


@dataclass(frozen=True, kw_only=True)
class Destinations:
    """What the user wants written, and the earlier verification to compare with."""

    report: Path | None = None
    junit: Path | None = None
    against: Path | None = None

    def prepared(self) -> Json | None:
        """Make the folders and read the earlier verification, before hours of comparing."""
        for folder in (self.report, self.junit and self.junit.parent):
            if folder is not None:
                make_folder(folder)
        if self.junit is not None and self.junit.exists() and not self.junit.is_file():
            raise UsageError(f"--junit {self.junit} exists but is not a regular file; choose another path")
        return None if self.against is None else read_verification(self.against)


@dataclass(frozen=True)
class Publication:
    """The result of writing a verification's files."""

    report: Path | None
    """The page, if it was written."""
    changes: list[str] | None
    """One line per change since the earlier verification. None if there is no earlier one."""
    unwritten: OSError | None
    """The error of the disk."""

    def lines(self, earlier: Path | None) -> list[str]:
        """The lines for the terminal."""
        if self.changes is None:
            return []
        counted = "nothing has changed" if not self.changes else f"{len(self.changes)} changes"
        return [f"since {earlier}: {counted}", *(f"  {line}" for line in self.changes)]


def published_pair(request: PairRequest, destinations: Destinations, console: Console) -> Outcome:
    """Compare two forms of a model and publish the verdict. Nothing of this imports torch."""

    def verification() -> Verification:
        result = compare_pair(request, console)
        facts = {"reference": request.reference.name, "candidate": request.candidate.name}
        return Verification(result.verdict, (), (), facts, pictures=pictures_of(result.rows))

    return published(request.subject, verification, destinations)


def published(subject: Mapping[str, str], verify: Callable[[], Verification], destinations: Destinations) -> Outcome:
    """Run a verification, write the requested files, and return the result.

    What is verified stays as it is.
    """
    earlier = destinations.prepared()
    found = verify()
    publication = publish(found, destinations, earlier)
    told: dict[str, JsonValue] = {**subject, **({"report": str(publication.report)} if publication.report else {})}
    lines = [*found.lines, *(f"{kind}: {path}" for kind, path in told.items()), *publication.lines(destinations.against)]
    facts: dict[str, JsonValue] = {**told, "verification": found.as_json}
    if publication.changes is not None:
        facts["changes"] = list[JsonValue](publication.changes)
    return Outcome(facts, "\n".join(map(printable, lines)), found.failure, found.verdict.interrupted, publication.unwritten)


def publish(found: Verification, destinations: Destinations, earlier: Json | None) -> Publication:
    """Write everything that is wanted."""
    changed = None if earlier is None else changes(earlier, found.as_json)
    _tell_github(found)
    unwritten = _unwritten(found, destinations)
    report = destinations.report / REPORT if destinations.report and not unwritten else None
    return Publication(report, changed, unwritten)


def _unwritten(found: Verification, destinations: Destinations) -> OSError | None:
    try:
        if destinations.report is not None:
            found.write(destinations.report)
        if destinations.junit is not None:
            write_file(destinations.junit, junit_xml(found.verdict, found.other_failures))
    except OSError as error:
        return error
    return None


def _tell_github(found: Verification) -> None:
    """Report to GitHub, in a GitHub workflow only.

    GitHub reads annotations from both streams. They go to standard error, because standard output
    is for results.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(path).open("a", encoding="utf-8", errors="replace") as file:
                file.write(summary(found.verdict, found.other_failures))
        except OSError as error:  # a container may have the variable but lack the file
            print(f"no step summary: {error}", file=sys.stderr)
    for line in annotations(found.verdict, found.other_failures):
        print(line, file=sys.stderr)
