"""The changes from one verification.json to another: files, samples, versions, links and checks.

Takes their contents as plain JSON. Judges nothing: every change is listed, whatever it means.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.errors import UsageError

Json = Mapping[str, Any]
_OF_A_LINK = ("status", "required", "observed", "max_ulp", "max_abs", "top1_changes", "samples", "reason")
_OF_A_CHECK = ("status", "required", "observed", "max_ulp", "settings", "reason")


def read_verification(path: Path) -> Json:
    """The content of an earlier verification.json."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the verification.json of an earlier run")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); give the verification.json of an earlier run") from error
    lists = [content.get(key) for key in ("links", "invariance")] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) for entries in lists):
        raise UsageError(f"{path} has no list of links; give the verification.json of an earlier run")
    return content


def changes(old: Json, new: Json) -> list[str]:
    """One line per change. Empty if nothing has changed."""
    found = [*_differences("verdict", old.get("verdict"), new.get("verdict"))]
    found += _by_key("file", old.get("files"), new.get("files"))
    found += _differences("samples", old.get("samples"), new.get("samples"))
    found += _entries(old, new, "links", ("from", "to"), _OF_A_LINK, " -> ")
    found += _entries(old, new, "invariance", ("check", "stage"), _OF_A_CHECK, " of ")
    found += _by_key("environment", old.get("environment"), new.get("environment"))
    found += _by_key("stage", old.get("stages"), new.get("stages"))
    return found


def _entries(old: Json, new: Json, key: str, name: tuple[str, str], compared: tuple[str, ...], joint: str) -> Iterator[str]:
    before, after = ({joint.join(str(entry.get(part)) for part in name): entry for entry in content.get(key, ())} for content in (old, new))
    for place in dict.fromkeys([*before, *after]):
        if place not in after or place not in before:
            yield f"{place}: {'no longer there' if place in before else 'new, ' + str(after[place].get('status'))}"
            continue
        for part in compared:
            yield from _differences(f"{place}: {part}", before[place].get(part), after[place].get(part))


def _by_key(what: str, old: object, new: object) -> Iterator[str]:
    before, after = (value if isinstance(value, Mapping) else {} for value in (old, new))
    for key in dict.fromkeys([*before, *after]):
        yield from _differences(f"{what} {key}", before.get(key), after.get(key))


def _differences(what: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _by_key(f"{what}:", old, new)
    elif old != new:
        yield f"{what}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
    return text if len(text) <= 120 else text[:120] + "..."
