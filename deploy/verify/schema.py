"""The JSON Schema of verification.json, derived from the types that the file is written from.

`python -m deploy.verify.schema` prints it. The published copy is docs/verification.schema.json.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deploy.verify.verdict import FORMAT_VERSION, Verdict

Schema = dict[str, Any]

_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
"""Values that JSON has no number for are written as words."""
_PLAIN: dict[object, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: _NUMBER,
    type(None): {"type": "null"},
    object: {},
}
_HASHES = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}


def verification_schema() -> Schema:
    """The whole schema, with the dataclasses as its definitions."""
    definitions: dict[str, Schema] = {}
    whole = _of_dataclass(Verdict, definitions)
    whole["properties"]["files"] = _HASHES
    whole["properties"] |= {"verdict": {"enum": ["pass", "fail", "incomplete"]}, "format_version": {"const": FORMAT_VERSION}}
    whole["required"] = ["verdict", "format_version", *whole["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "verification.json of samegraph",
        "description": (Verdict.__doc__ or "").strip(),
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


def _of_dataclass(kind: type, definitions: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind)
    properties = {field.name.rstrip("_"): _of(hints[field.name], definitions) for field in fields(kind)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = {"description": " ".join((hint.__doc__ or "").split()), **_of_dataclass(hint, definitions)}
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _PLAIN[hint] if hint in _PLAIN else _of_generic(hint, definitions)


def _of_generic(hint: Any, definitions: dict[str, Schema]) -> Schema:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(each, definitions) for each in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is tuple:
        return {
            "type": "array",
            "prefixItems": [_of(each, definitions) for each in arguments],
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    raise TypeError(f"{hint} has no form in the schema")


if __name__ == "__main__":
    print(json.dumps(verification_schema(), indent=2))
