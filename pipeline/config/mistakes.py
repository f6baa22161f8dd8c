"""Put the validator's errors into one line for a person.

The line says where the mistake is, what was given, what is allowed and the nearest name. Takes
pydantic's errors and the JSON Schema, which gives the allowed types, ranges and choices.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.yaml_text import Path

Schema = Mapping[str, Any]

_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_PLAIN = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
_WIDEST = 60


def in_one_line(error: ValidationError, value: object, schema: Schema, place_of: Callable[[Path], str]) -> str:
    """Return the first mistake and the number of further ones.

    Unknown keys come first because they tend to be the cause.
    """
    mistakes: dict[Path, str] = {}
    for details in sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"):
        path, allowed = _walk(schema, details["loc"])
        path = (*path, *_key_of(details))
        mistakes.setdefault(path, _sentence(details, path, allowed, value, schema))
    path, sentence = next(iter(mistakes.items()))
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return ": ".join(part for part in (place_of(path), key_path(path), sentence) if part) + more


def key_path(path: Path) -> str:
    """Return a path as users write it: training.schedule.milestones[0]"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def shown(value: object) -> str:
    """Show a given value as a short piece of YAML on one line."""
    try:
        return shortened(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError):
        return shortened(repr(value))


def shortened(text: str) -> str:
    """Return the text on one line, cut off at the end if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..."


def _key_of(details: ErrorDetails) -> Path:
    """Return the key in question where the validator reports the section around it."""
    match details["type"]:
        case "extra_forbidden":
            return details["loc"][-1:]
        case "union_tag_invalid" | "union_tag_not_found":
            return ("name",)
        case _:
            return ()


_MOST_HINTS = 2


def _sentence(details: ErrorDetails, path: Path, allowed: Schema, value: object, schema: Schema) -> str:
    match details["type"]:
        case "extra_forbidden":
            return "unknown key" + _hint(path, allowed, schema)
        case "missing":
            return f"missing, expected {_describe(allowed, schema)}"
        case "union_tag_not_found":
            return f"missing, expected {_one_of(_names(allowed))}"
        case "union_tag_invalid":
            return f"got {shown(_at(value, path))}, expected {_one_of(_names(allowed))}"
        case "value_error":
            return str(details["ctx"]["error"])
        case _:
            got = _at(value, path)
            return f"got {'nothing' if got is None else shown(got)}, expected {_describe(allowed, schema)}"


def _hint(path: Path, section: Schema, schema: Schema) -> str:
    *parents, key = path
    known = list(section["properties"])
    near = difflib.get_close_matches(str(key), known, n=1)
    paths = [p for p in _key_paths(schema, schema) if p[-1] == key]
    elsewhere = [p for p in paths if len(p) == min(map(len, paths))]
    meant = [(*parents, near[0])] if near else elsewhere
    if 0 < len(meant) <= _MOST_HINTS:
        return f", did you mean {' or '.join(map(key_path, meant))}?"
    return f"; known here: {', '.join(known)}"


def _key_paths(node: Schema, schema: Schema, above: Path = ()) -> Iterator[Path]:
    for key, child in _resolved(node, schema).get("properties", {}).items():
        yield (*above, key)
        yield from _key_paths(child, schema, (*above, key))


def _walk(schema: Schema, loc: Sequence[str | int]) -> tuple[Path, Schema]:
    """Follow an error's location as long as it names keys; the rest is internal to the
    validator."""
    node = schema
    path: Path = ()
    for part in loc:
        node = _resolved(node, schema)
        variants = node.get("discriminator", {}).get("mapping", {})
        if part in variants:
            node = {"$ref": variants[part]}
            continue
        child = _child(node, part)
        if child is None:
            break
        node, path = child, (*path, part)
    return path, _resolved(node, schema)


def _child(node: Schema, part: str | int) -> Schema | None:
    if isinstance(part, str):
        found: Schema | None = node.get("properties", {}).get(part)
        return found
    places = node.get("prefixItems", ())
    return places[part] if part < len(places) else node.get("items")


def _resolved(node: Schema, schema: Schema) -> Schema:
    if "$ref" in node:
        target: Schema = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return target
    return node


def _at(value: object, path: Path) -> object:
    for part in path:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and isinstance(part, int):
            value = value[part]
    return value


def _describe(node: Schema, schema: Schema) -> str:
    node = _resolved(node, schema)
    if "discriminator" in node:
        return f"a section such as {{name: {_names(node)[0]}}}, the name being {_one_of(_names(node))}"
    if "anyOf" in node:
        return " or ".join(_describe(option, schema) for option in node["anyOf"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return _one_of(node["enum"])
    return _describe_type(node, schema)


def _names(union: Schema) -> list[str]:
    """Return the names that tell the sections of a union apart, in the order of its definition."""
    name_of = {reference: name for name, reference in union["discriminator"]["mapping"].items()}
    return [name_of[option["$ref"]] for option in union["oneOf"]]


def _one_of(choices: Sequence[object]) -> str:
    return "one of " + ", ".join(map(str, choices))


def _describe_type(node: Schema, schema: Schema) -> str:
    match node.get("type"):
        case "object":
            return f"a section with keys out of: {', '.join(node['properties'])}"
        case "array" if "items" in node:
            return f"a list, each item {_describe(node['items'], schema)}"
        case "array":
            return f"a list of {len(node['prefixItems'])} items, each {_describe(node['prefixItems'][0], schema)}"
        case "string":
            examples = node.get("examples", ())
            return f"text such as {', '.join(examples)}" if examples else "text" + " that is not empty" * ("minLength" in node)
        case kind:
            bounds = [f"{words} {node[bound]}" for bound, words in _BOUNDS if bound in node]
            return ", ".join(filter(None, (_PLAIN[str(kind)], " and ".join(bounds))))
