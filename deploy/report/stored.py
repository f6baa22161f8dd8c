"""Checks a bundle's own verification.json and report.html: they must belong to it and agree.

Takes an opened bundle. The figures in them are not read: those are measured again.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from export.bundle import REPORT, VERIFICATION, Bundle
from export.errors import DamagedError

_OF_VERIFICATION = re.compile(rb'<meta name="samegraph-verification" content="([0-9a-f]{64})">')


def require_its_own_verdict(bundle: Bundle) -> None:
    """Raise DamagedError if the stored verdict is not that of this bundle.

    Call it once everything was found to be the same: a fault in a model is reported before a fault
    in its verdict. While a bundle is being made, it has no verdict yet.
    """
    if bundle.has(VERIFICATION):
        content = _content(bundle)
        _require_its_own_files(bundle, content.get("files"))
        _require_one_answer(bundle, content)
    if bundle.has(VERIFICATION) and bundle.has(REPORT):
        found = _OF_VERIFICATION.search(bundle.read(REPORT))
        if found is None or found[1].decode() != bundle.hashes[VERIFICATION]:
            raise DamagedError(f"{bundle.folder / REPORT} is not the report of {VERIFICATION} beside it; export the bundle again")


def _content(bundle: Bundle) -> Mapping[str, Any]:
    try:
        content = json.loads(bundle.read(VERIFICATION))
    except (ValueError, RecursionError) as error:
        raise _no_verdict(bundle, f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _no_verdict(bundle, "it is not a JSON object")
    return content


def _require_its_own_files(bundle: Bundle, files: object) -> None:
    if not isinstance(files, dict) or not files:
        raise _no_verdict(bundle, "it names no files")
    for name, digest in files.items():
        if bundle.hashes.get(name) != digest:
            verdict = f"{bundle.folder / VERIFICATION} is the verdict on another {name}"
            raise DamagedError(f"{verdict}, sha256 {str(digest)[:16]}...; export the bundle again")


def _require_one_answer(bundle: Bundle, content: Mapping[str, Any]) -> None:
    checks = [*_records(bundle, content, "links"), *_records(bundle, content, "invariance")]
    failed = any(check.get("status") == "failed" for check in checks)
    if content.get("verdict") != ("fail" if failed else "pass"):
        outcome = "something failed" if failed else "nothing failed"
        raise _no_verdict(bundle, f"it says {content.get('verdict')!r} where {outcome}")


def _records(bundle: Bundle, content: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = content.get(name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found) or (name == "links" and not found):
        raise _no_verdict(bundle, f"it has no list of {name}")
    return found


def _no_verdict(bundle: Bundle, why: str) -> DamagedError:
    return DamagedError(f"{bundle.folder / VERIFICATION} is not a verdict on this bundle: {why}; export the bundle again")
