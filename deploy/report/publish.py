"""Publishes a verdict: a folder with its report, a JUnit file, GitHub, and changes since a run.

Takes a verification. If the disk refuses to write, the verdict is still reported.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.report.changes import Json, changes, read_verification
from deploy.report.ci import annotations, junit_xml, summary
from deploy.report.verification import Verification
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
