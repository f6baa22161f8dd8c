"""Bundles that somebody has changed and made to look right again."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from export.bundle import Facts, Manifest, json_bytes, write_manifest
from export.files import sha256_of


def relist(bundle: Path) -> None:
    """Write a manifest of the files as they are now."""
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    write_manifest(bundle, Facts.model_validate(manifest.model_dump(exclude={"files", "format_version"})))


def rehash(bundle: Path) -> None:
    """Make a changed file look right as an attacker would: fix the hashes in verdict and report."""
    verdict = json.loads((bundle / "verification.json").read_bytes())
    files: dict[str, JsonValue] = {name: sha256_of((bundle / name).read_bytes()) for name in verdict["files"] if (bundle / name).exists()}
    rewrite_verdict(bundle, {**verdict, "files": files})


def rewrite_verdict(bundle: Path, content: Mapping[str, JsonValue]) -> None:
    """Write another verdict, with a report that belongs to it."""
    path, report = bundle / "verification.json", bundle / "report.html"
    before = sha256_of(path.read_bytes())
    path.write_bytes(json_bytes(content))
    report.write_text(report.read_text().replace(before, sha256_of(path.read_bytes())))
    relist(bundle)
