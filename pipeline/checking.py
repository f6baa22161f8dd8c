"""What `pipeline verify` does: a bundle's own chain or a pair of forms, and what is written of the verdict.

Takes what was typed. Without a bundle it needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from pipeline.outcome import Outcome
from pipeline.pairs import Typed
from pipeline.pairs import compare as compared
from pipeline.verified import Verification
from pipeline.watching import Console

if TYPE_CHECKING:
    from pipeline.verification import Asked  # brings torch


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where the verdict goes, beside the terminal."""

    against: Path | None = None
    report: Path | None = None
    junit: Path | None = None


def verify(folder: Path, asked: "Asked", samples: str | None, wanted: Wanted, console: Console) -> Outcome:
    """Verify a bundle from its files alone. The bundle stays as it is."""
    from export.bundle import open_bundle
    from pipeline.verification import samples_of, verify_bundle

    bundle = open_bundle(folder)
    return _told(verify_bundle(bundle, samples_of(bundle, samples), asked, console), {"bundle": str(folder)}, wanted)


def compare(typed: Typed, wanted: Wanted, console: Console) -> Outcome:
    """Verify a pair of forms."""
    return _told(compared(typed, console), {"reference": str(typed.reference), "candidate": str(typed.candidate)}, wanted)


def _told(found: Verification, what: Mapping[str, JsonValue], wanted: Wanted) -> Outcome:
    if wanted.report is not None:
        wanted.report.mkdir(parents=True, exist_ok=True)
        found.write(wanted.report)
    lines = [found.text, *(f"{kind}: {path}" for kind, path in what.items())]
    return Outcome({**what, "verification": found.as_json}, "\n".join(lines), found.failure, found.verdict.interrupted)
