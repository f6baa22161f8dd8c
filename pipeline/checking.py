"""What `pipeline verify` does: a bundle's own chain or a pair of forms, and what is written of the verdict.

Takes what was typed. Without a bundle it needs no torch.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deploy.verify import github
from deploy.verify.against import Json, changes, read_verification
from deploy.verify.junit import junit_xml
from export.errors import UsageError
from export.files import make_folder, write_file
from pipeline.layout import REPORT
from pipeline.outcome import Outcome
from pipeline.pairs import Typed
from pipeline.pairs import compare as compared
from pipeline.verified import Verification, printable
from pipeline.watching import Console

if TYPE_CHECKING:
    from pipeline.verification import Asked  # brings torch


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where the verdict goes, beside the terminal."""

    against: Path | None = None
    report: Path | None = None
    junit: Path | None = None

    def earlier(self) -> Json | None:
        """The verification to compare with. It is read, and folders are made, before hours of comparing."""
        for folder in (self.report, self.junit and self.junit.parent):
            if folder is not None:
                make_folder(folder)
        if self.junit is not None and self.junit.exists() and not self.junit.is_file():
            raise UsageError(f"--junit {self.junit} is there and no file; choose another path")
        return None if self.against is None else read_verification(self.against)


def verify(folder: Path, asked: "Asked", samples: str | None, wanted: Wanted, console: Console) -> Outcome:
    """Verify a bundle from its files alone. The bundle stays as it is."""
    from export.bundle import open_bundle
    from pipeline.verification import samples_of, verify_bundle

    earlier, bundle = wanted.earlier(), open_bundle(folder)
    return _told(verify_bundle(bundle, samples_of(bundle, samples), asked, console), {"bundle": str(folder)}, wanted, earlier)


def compare(typed: Typed, wanted: Wanted, console: Console) -> Outcome:
    """Verify a pair of forms."""
    earlier = wanted.earlier()
    return _told(compared(typed, console), {"reference": str(typed.reference), "candidate": str(typed.candidate)}, wanted, earlier)


def _told(found: Verification, what: Mapping[str, JsonValue], wanted: Wanted, earlier: Json | None) -> Outcome:
    changed = None if earlier is None else changes(earlier, found.as_json)
    _tell_github(found)
    unwritten = _unwritten(found, wanted)
    told = {**what, **({"report": str(wanted.report / REPORT)} if wanted.report and not unwritten else {})}
    lines = [*found.lines, *(f"{kind}: {path}" for kind, path in told.items()), *_changed_lines(changed, wanted.against)]
    facts: dict[str, JsonValue] = {**told, "verification": found.as_json}
    if changed is not None:
        facts["changes"] = list[JsonValue](changed)
    return Outcome(facts, "\n".join(map(printable, lines)), found.failure, found.verdict.interrupted, unwritten)


def _unwritten(found: Verification, wanted: Wanted) -> OSError | None:
    """Write what is wanted. Where the disk refuses, the verdict is told all the same, and then what the disk said."""
    try:
        if wanted.report is not None:
            found.write(wanted.report)
        if wanted.junit is not None:
            write_file(wanted.junit, junit_xml(found.verdict, found.other_failures))
    except OSError as error:
        return error
    return None


def _changed_lines(changed: list[str] | None, old: Path | None) -> list[str]:
    if changed is None:
        return []
    return [f"since {old}: {'nothing has changed' if not changed else f'{len(changed)} changes'}", *(f"  {line}" for line in changed)]


def _tell_github(found: Verification) -> None:
    """In a workflow of GitHub, and nowhere else. Annotations are read from either stream; results keep theirs."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(path).open("a", encoding="utf-8", errors="replace") as file:
                file.write(github.summary(found.verdict, found.other_failures))
        except OSError as error:  # as in a container that has the variable and not the file
            print(f"no step summary: {error}", file=sys.stderr)
    for line in github.annotations(found.verdict, found.other_failures):
        print(line, file=sys.stderr)
